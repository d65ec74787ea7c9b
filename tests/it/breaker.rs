//! A provider that keeps failing is not used for a while.

use std::time::{Duration, Instant};

use http::StatusCode;
use nexusgate::demo::provider::{Gate, Reply};
use nexusgate::domain::provider::ProviderKind;

use crate::failover::{provider, two_providers};
use crate::support::TestApp;
use crate::support::app::MODEL;
use crate::support::scrape::Scrape;

fn up(scrape: &Scrape, value: f64) -> bool {
    scrape.metric("nexusgate_provider_up").label("provider", "first").is(value)
}

/// Two providers; the first has failed until its breaker opened.
async fn opened() -> TestApp {
    let app = two_providers().await;
    provider(&app, "first").always(Reply::status(StatusCode::INTERNAL_SERVER_ERROR));
    for _ in 0..5 {
        assert_eq!(app.chat(MODEL).send().await.status(), 200);
    }
    app.eventually("the breaker is open", |scrape| up(scrape, 0.0)).await;
    app
}

/// Asks until the first provider gets a request, and returns its answer. The breaker lets a probe through after some seconds;
/// until then the second provider answers.
async fn probe(app: &TestApp) -> reqwest::Response {
    let asked = provider(app, "first").calls().len();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = app.chat(MODEL).streamed().send().await;
        assert_eq!(answer.status(), 200);
        if provider(app, "first").calls().len() > asked {
            return answer;
        }
        assert!(Instant::now() < deadline, "no probe was made");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn it_opens_and_closes() {
    let app = opened().await;
    let asked = provider(&app, "first").calls().len();
    for _ in 0..5 {
        assert_eq!(app.chat(MODEL).send().await.status(), 200);
    }
    assert_eq!(provider(&app, "first").calls().len(), asked, "it is left alone");
    provider(&app, "first").always(Reply::text("well again"));
    probe(&app).await;
    app.eventually("the breaker is closed", |scrape| up(scrape, 1.0)).await;
}

/// An answer may take minutes; its beginning is enough.
#[tokio::test]
async fn a_probe_that_streams_closes_it_with_its_first_token() {
    let app = opened().await;
    let gate = Gate::new();
    provider(&app, "first").always(Reply::text("one two three four").stalled_after(4, &gate));
    let answer = probe(&app).await;
    app.eventually("the breaker is closed", |scrape| {
        up(scrape, 1.0) && scrape.metric("nexusgate_requests_in_flight").is(1.0)
    })
    .await;
    gate.open();
    assert!(answer.text().await.expect("the rest").contains("[DONE]"));
}

/// With one provider there is no failover: an open breaker does not refuse a request that may succeed.
#[tokio::test]
async fn a_lone_provider_is_tried_all_the_same() {
    let app = TestApp::spawn().await;
    app.provider().always(Reply::status(StatusCode::INTERNAL_SERVER_ERROR));
    for _ in 0..4 {
        app.chat(MODEL).send().await;
    }
    app.provider().always(Reply::text("well again"));
    assert_eq!(app.chat(MODEL).send().await.status(), 200);
}

/// The last resort is a provider with a free slot, whatever its rank.
#[tokio::test]
async fn a_provider_without_room_is_no_last_resort() {
    let app = TestApp::builder()
        .targets(vec![("first", ProviderKind::OpenAi, None), ("second", ProviderKind::OpenAi, None)])
        .adjust(|settings| settings.declared.providers[1].max_concurrency = Some(1))
        .spawn()
        .await;
    provider(&app, "first").always(Reply::status(StatusCode::INTERNAL_SERVER_ERROR));
    for _ in 0..5 {
        assert_eq!(app.chat(MODEL).send().await.status(), 200);
    }
    app.eventually("the breaker is open", |scrape| up(scrape, 0.0)).await;
    let gate = Gate::new();
    provider(&app, "second").always(Reply::text("slow").held_by(&gate));
    let waiting = tokio::spawn(app.chat(MODEL).build().send());
    gate.reached(1).await;
    provider(&app, "first").always(Reply::text("well again"));
    let answer = app.chat(MODEL).send().await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-nexusgate-provider"], "first");
    gate.open();
    assert_eq!(waiting.await.expect("joined").expect("an answer").status(), 200);
}
