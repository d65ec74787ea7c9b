//! The request log, its statistics and its sums over HTTP.

use nexusgate::demo::provider::Reply;
use reqwest::StatusCode;
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};

use super::Administrator;
use crate::support::TestApp;
use crate::support::app::{EMBEDDING_MODEL, MODEL};

const OTHER_KEY: &str = "sk-other-0123456789abcdef";

/// Seven completions of two keys in three formats, one of them failed, one answered from the log; two embeddings.
async fn busy() -> TestApp {
    let app = TestApp::builder().key(OTHER_KEY, "other", None, None).spawn().await;
    for n in 0..3 {
        let call = app.chat(MODEL).header("x-nexusgate-reqid", &format!("request-{n}"));
        assert_eq!(call.send().await.status(), 200);
    }
    app.chat(MODEL).header("x-nexusgate-reqid", "request-0").send().await.bytes().await.expect("again");
    app.chat(MODEL).streamed().key(OTHER_KEY).send().await.bytes().await.expect("a stream");
    let body =
        json!({ "model": MODEL, "max_tokens": 9, "messages": [{ "role": "user", "content": "Hello" }] });
    let messages = app.http.post(app.url("/v1/messages")).bearer_auth(&app.key).json(&body).send().await;
    assert_eq!(messages.expect("an answer").status(), 200);
    app.provider().next(Reply::status(StatusCode::BAD_REQUEST));
    assert_eq!(app.chat(MODEL).key(OTHER_KEY).send().await.status(), 400);
    for _ in 0..2 {
        app.embeddings(EMBEDDING_MODEL).send().await.bytes().await.expect("an answer");
    }
    app.settled().await;
    app
}

fn rows(page: &Value) -> &[Value] {
    page["data"].as_array().expect("rows")
}

#[tokio::test]
async fn filters_leave_what_they_say_and_count_it() {
    let app = busy().await;
    let admin = Administrator(&app);
    let keys = admin.get("/apiKey").await.ok();
    let other =
        keys.as_array().expect("keys").iter().find(|key| key["comment"] == "other").expect("it")["id"]
            .clone();
    let provider = admin.get("/providers").await.ok()[0]["id"].clone();
    let all = admin.get("/completions").await.ok();
    assert_eq!(
        (rows(&all).len(), &all["total"], &all["from"], &all["next"]),
        (7, &json!(7), &json!(0), &Value::Null)
    );
    let middle = rows(&all)[3]["createdAt"].as_str().expect("a time").to_owned();
    for (query, count) in [
        (format!("apiKeyId={other}"), 2),
        (format!("apiKey={OTHER_KEY}"), 2),
        (format!("apiKey={other}"), 2),
        (format!("model={MODEL}"), 7),
        ("model=another".to_owned(), 0),
        ("model=%00".to_owned(), 0),
        ("provider=alpha".to_owned(), 6),
        ("provider=nobody".to_owned(), 0),
        (format!("providerId={provider}"), 6),
        ("status=completed".to_owned(), 5),
        ("status=failed".to_owned(), 1),
        ("status=cache_hit".to_owned(), 1),
        ("apiFormat=anthropic".to_owned(), 1),
        ("api_format=openai-chat".to_owned(), 6),
        ("error=HTTP_4".to_owned(), 1),
        ("error=%25".to_owned(), 0),
        (format!("from={middle}"), 4),
        (format!("to={middle}"), 3),
        (format!("from={middle}&to={middle}"), 0),
        (format!("status=completed&apiKey={OTHER_KEY}"), 1),
        ("from=2020-01-01&to=2199-01-01".to_owned(), 7),
    ] {
        let page = admin.get(&format!("/completions?{query}")).await.ok();
        assert_eq!((rows(&page).len(), page["total"].as_u64()), (count, Some(count as u64)), "{query}");
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("offset=-1", "offset"),
        ("apiKeyId=x", "apiKeyId"),
        ("status=good", "status"),
        ("apiFormat=xml", "apiFormat"),
        ("from=yesterday", "from"),
        ("to=0001-01-01", "to"),
        ("after=nonsense", "after"),
        ("after=-6000000000000000000_0190b6a0-0000-7000-8000-000000000000", "after"),
        ("after=8000000000000000000_0190b6a0-0000-7000-8000-000000000000", "after"),
    ] {
        admin.get(&format!("/completions?{query}")).await.refused(400, "invalid_request", Some(field));
    }
    admin.get("/completions?apiKey=sk-unknown").await.refused(404, "not_found", None);
}

#[tokio::test]
async fn it_is_known_when_a_key_was_last_used() {
    let app = busy().await;
    let keys = Administrator(&app).get("/apiKey").await.ok();
    for key in keys.as_array().expect("keys") {
        assert!(key["lastSeen"].is_string(), "{key}");
    }
}

#[tokio::test]
async fn pages_hold_every_record_once() {
    let app = busy().await;
    let admin = Administrator(&app);
    let all = admin.get("/completions").await.ok();
    let ids = |page: &Value| rows(page).iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    let mut by_offset = Vec::new();
    for offset in [0, 3, 6] {
        let page = admin.get(&format!("/completions?limit=3&offset={offset}")).await.ok();
        assert_eq!((&page["total"], &page["from"]), (&json!(7), &json!(offset)));
        by_offset.extend(ids(&page));
    }
    let (mut by_cursor, mut after) = (Vec::new(), String::new());
    loop {
        let page = admin.get(&format!("/completions?limit=2{after}")).await.ok();
        by_cursor.extend(ids(&page));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!((&by_offset, &by_cursor), (&ids(&all), &ids(&all)));
}

#[tokio::test]
async fn a_record_is_shown_whole_and_forgotten() {
    let app = busy().await;
    let admin = Administrator(&app);
    let hit = admin.get("/completions?status=cache_hit").await.ok();
    let source = rows(&hit)[0]["sourceId"].as_str().expect("where it was answered from").to_owned();
    assert!(rows(&hit)[0].get("request").is_none(), "lists come without bodies");
    let path = format!("/completions/{source}");
    let record = admin.get(&path).await.ok();
    assert_eq!((&record["status"], &record["stream"]), (&json!("completed"), &json!(false)));
    assert_eq!(record["request"]["model"], MODEL);
    assert_eq!(record["reqId"], "request-0");
    assert!(record["response"]["choices"].is_array());
    let tokens = record["promptTokens"].as_f64().expect("tokens");
    assert!((record["promptCost"].as_f64().expect("a cost") - tokens * 2.0 / 1e6).abs() < 1e-12);
    let stream = admin.get(&format!("/completions?apiKey={OTHER_KEY}&status=completed")).await.ok();
    let stream =
        admin.get(&format!("/completions/{}", rows(&stream)[0]["id"].as_str().expect("an id"))).await.ok();
    assert!(stream["ttft"].as_f64().expect("a time") > 0.0);
    assert!(stream["response"].as_str().expect("events as text").contains("data: [DONE]"));

    assert_eq!(admin.delete(&path).await.ok(), json!({ "success": true }));
    admin.get(&path).await.refused(404, "not_found", None);
    admin.delete(&path).await.refused(404, "not_found", None);
    assert_eq!(admin.get("/completions").await.ok()["total"], 6);
    admin.get("/completions/5").await.refused(404, "not_found", None);

    let embeddings = admin.get("/embeddings?limit=1").await.ok();
    assert_eq!((&embeddings["total"], rows(&embeddings).len()), (&json!(2), 1));
    let path = format!("/embeddings/{}", rows(&embeddings)[0]["id"].as_str().expect("an id"));
    let record = admin.get(&path).await.ok();
    assert_eq!((&record["model"], &record["apiFormat"]), (&json!(EMBEDDING_MODEL), &Value::Null));
    assert!(record["response"]["data"].is_array());
    admin.delete(&path).await.ok();
    assert_eq!(admin.get("/embeddings").await.ok()["total"], 1);
}

#[tokio::test]
async fn the_overview_and_the_sums_equal_the_counters() {
    let app = busy().await;
    let admin = Administrator(&app);
    let scrape = app.scrape().await;
    let counter = |name: &str| scrape.metric(name).value();
    let sum = |value: &Value| value.as_f64().expect("a number");
    let usage = admin.get("/usage").await.ok();
    let totals = &usage["totals"];
    let completions = counter("nexusgate_completions_total");
    assert_eq!(sum(&totals["requests"]), completions + counter("nexusgate_embeddings_total"));
    let embedded = counter("nexusgate_tokens_embedding_total");
    assert_eq!(sum(&totals["promptTokens"]), counter("nexusgate_tokens_prompt_total") + embedded);
    assert_eq!(sum(&totals["completionTokens"]), counter("nexusgate_tokens_completion_total"));
    assert!((sum(&totals["cost"]) - counter("nexusgate_cost_total_usd_total")).abs() < 1e-12);
    assert_eq!(
        (&usage["total_prompt_tokens"], &usage["total_completion_tokens"]),
        (&totals["promptTokens"], &totals["completionTokens"])
    );

    let groups = rows(&usage);
    assert_eq!(groups.len(), 3, "two keys of the model, one of the embedding model: {usage}");
    for group in groups {
        let (comment, model) =
            (group["apiKeyComment"].as_str().expect("a comment"), group["model"].as_str().expect("a model"));
        let metric =
            if model == MODEL { "nexusgate_completions_total" } else { "nexusgate_embeddings_total" };
        let counted = scrape.metric(metric).label("api_key_comment", comment).label("model", model);
        assert_eq!(sum(&group["requests"]), counted.value(), "{group}");
    }
    for (query, count) in [
        ("groupBy=kind", 2),
        ("groupBy=provider", 2),
        ("groupBy=", 1),
        ("groupBy=apiKey", 2),
        ("groupBy=day", 1),
        ("apiKey=sk-other-0123456789abcdef", 1),
        ("model=embed-small", 1),
        ("limit=1&offset=1", 1),
        ("to=2020-01-01", 0),
    ] {
        let usage = admin.get(&format!("/usage?{query}")).await.ok();
        assert_eq!(rows(&usage).len(), count, "{query}: {usage}");
    }
    admin.get("/usage?groupBy=colour").await.refused(400, "invalid_request", Some("groupBy"));
    admin.get("/usage?from=soon").await.refused(400, "invalid_request", Some("from"));
    admin.get("/usage?apiKey=sk-unknown").await.refused(404, "not_found", None);

    for range in ["1m", "5m", "10m", "30m", "1h", "4h", "12h"] {
        let overview = admin.get(&format!("/stats/overview?range={range}")).await.ok();
        let summary = &overview["summary"];
        assert_eq!(
            (sum(&summary["completionsCount"]), sum(&summary["embeddingsCount"])),
            (completions, 2.0),
            "{range}"
        );
        // Five completed and one hit of seven; the provider refused the seventh.
        assert_eq!(
            (sum(&summary["completionsSuccessRate"]), sum(&summary["embeddingsSuccessRate"])),
            (85.71, 100.0)
        );
        assert!(sum(&summary["avgTTFT"]) > 0.0);
        assert_eq!(sum(&overview["tokenUsage"]["embeddingTokens"]), embedded);
        let series = overview["timeSeries"].as_array().expect("a series");
        let of = |name: &str| series.iter().map(|step| sum(&step[name])).sum::<f64>();
        assert_eq!(
            (of("completionsCount"), of("embeddingsCount"), of("completionsFailed")),
            (completions, 2.0, 1.0)
        );
        assert!((of("cost") - sum(&totals["cost"])).abs() < 1e-12, "{range}");
        let shares = overview["modelDistribution"].as_array().expect("shares");
        assert_eq!((&shares[0]["model"], &shares[0]["type"]), (&json!(MODEL), &json!("chat")));
    }
    assert_eq!(admin.get("/stats/overview").await.ok()["range"], "1h");
    admin.get("/stats/overview?range=2h").await.refused(400, "invalid_request", Some("range"));
}

#[tokio::test]
async fn a_database_that_is_away_is_not_the_administrators_fault() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    for table in ["api_keys", "providers", "models", "completions", "usage_daily"] {
        let database = app.running().database();
        database
            .execute_unprepared(&format!("ALTER TABLE {table} RENAME TO {table}_gone"))
            .await
            .expect("renamed");
        let path = match table {
            "api_keys" => "/apiKey",
            "usage_daily" => "/usage",
            table => &format!("/{table}"),
        };
        let response = admin.request(reqwest::Method::GET, path).send().await.expect("an answer");
        assert_eq!(response.headers()["retry-after"], "1", "{table}");
        let said = super::Answer::read(response).await.refused(503, "database_unavailable", None);
        assert!(!said.contains(table), "no internals: {said}");
        database
            .execute_unprepared(&format!("ALTER TABLE {table}_gone RENAME TO {table}"))
            .await
            .expect("renamed");
        admin.get(path).await.ok();
    }
}
