use http::{HeaderMap, StatusCode, header};

use super::*;

#[tokio::test]
async fn a_cut_leaves_exactly_the_pieces_before_it() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let whole = text_of(chat(&provider, &hello_streamed())).await;
    let events: Vec<&str> = whole.split_inclusive("\n\n").collect();
    for pieces in 0..events.len() {
        provider.next(Reply::text("This is a scripted answer.").cut_after(pieces));
        let response = chat(&provider, &hello_streamed()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let (bytes, complete) = read(response).await;
        assert!(!complete);
        assert_eq!(String::from_utf8(bytes).unwrap(), events[..pieces].concat());
    }
    let totals = provider.totals();
    assert_eq!((totals.answered, totals.cut), (1, u64::try_from(events.len()).unwrap()));
}

#[tokio::test]
async fn a_cut_body_is_half_of_what_was_announced() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let whole = text_of(chat(&provider, &hello())).await;
    provider.next(Reply::text("This is a scripted answer.").cut_after(1));
    let response = chat(&provider, &hello()).send().await.unwrap();
    assert_eq!(response.content_length(), u64::try_from(whole.len()).ok());
    let (bytes, complete) = read(response).await;
    assert!(!complete);
    assert_eq!(bytes, &whole.as_bytes()[..whole.len() / 2]);
}

#[tokio::test]
async fn what_was_sent_before_a_cut_arrives_even_when_it_is_more_than_a_socket_holds() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let chunks: Vec<Vec<u8>> = (0..64u8).map(|byte| vec![byte; 256 * 1024]).collect();
    provider.next(Reply::raw_stream(chunks.clone()).in_one_go().cut_after(64));
    let (bytes, complete) = read(chat(&provider, &hello_streamed()).send().await.unwrap()).await;
    assert!(!complete);
    assert_eq!(bytes, chunks.concat());
}

#[tokio::test]
async fn a_dropped_connection_has_no_answer() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.next(Reply::dropped());
    assert!(soon(chat(&provider, &hello()).send()).await.is_err());
    assert_eq!(provider.last_call().unwrap().progress(), Progress::Cut);
    assert!(soon(chat(&provider, &hello()).send()).await.is_ok(), "only that connection was closed");
}

#[tokio::test]
async fn a_refused_port_refuses() {
    let port = RefusedPort::reserve().unwrap();
    let url = format!("{}/chat/completions", port.base_url());
    let error = soon(Client::new().post(url).json(&hello()).send()).await.unwrap_err();
    assert!(error.is_connect());
}

#[tokio::test]
async fn a_held_answer_waits_for_its_gate() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let gate = Gate::new();
    provider.next(Reply::text("At last.").held_by(&gate));
    let answer = tokio::spawn(chat(&provider, &hello()).send());
    soon(gate.reached(1)).await;
    assert!(!answer.is_finished());
    assert_eq!(provider.last_call().unwrap().progress(), Progress::Running);
    gate.open();
    assert_eq!(soon(answer).await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_before_and_within_the_answer() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let gate = Gate::new();
    provider.next(Reply::text("Too late.").held_by(&gate));
    let waiting = tokio::spawn(chat(&provider, &hello()).send());
    soon(gate.reached(1)).await;
    waiting.abort();
    soon(provider.until(|calls| calls[0].client_left())).await;

    provider.next(Reply::text("Never read to the end.").stalled_after(2, &gate));
    let response = chat(&provider, &hello_streamed()).send().await.unwrap();
    soon(gate.reached(2)).await;
    drop(response);
    soon(provider.until(|calls| calls[1].client_left())).await;
    assert_eq!(provider.totals().client_left, 2);
    assert_eq!(provider.totals().tokens, Tokens::default());
}

#[tokio::test]
async fn a_stalled_stream_goes_on_when_released() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let gate = Gate::new();
    provider.next(Reply::text("One two three.").stalled_after(2, &gate));
    let mut response = chat(&provider, &hello_streamed()).send().await.unwrap();
    let mut early = Vec::new();
    while !early.ends_with(b"\n\n") || early.windows(6).filter(|part| part == b"data: ").count() < 2 {
        early.extend_from_slice(&soon(response.chunk()).await.unwrap().unwrap());
    }
    soon(gate.reached(1)).await;
    gate.open();
    let (late, complete) = read(response).await;
    assert!(complete);
    let text = String::from_utf8([early, late].concat()).unwrap();
    assert_eq!(joined(&payloads(&text), "/choices/0/delta/content"), "One two three.");
}

#[tokio::test]
async fn a_stalled_body_stalls_in_its_middle() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let gate = Gate::new();
    provider.next(Reply::text("One two three.").stalled_after(1, &gate));
    let response = chat(&provider, &hello()).send().await.unwrap();
    soon(gate.reached(1)).await;
    gate.open();
    let (bytes, complete) = read(response).await;
    assert!(complete && serde_json::from_slice::<Value>(&bytes).is_ok());
}

#[tokio::test]
async fn bytes_may_be_cut_anywhere_and_stay_the_same() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let answer = Answer::text("Grüße aus Zürich 🏔 und 東京.");
    provider.next(answer.clone());
    let whole = text_of(chat(&provider, &hello_streamed())).await;
    for reply in [
        Reply::answer(answer.clone()).split(1),
        Reply::answer(answer.clone()).split(7).every(Duration::from_micros(10)),
        Reply::answer(answer.clone()).split_at([100, 3, 3, 1_000_000]),
        Reply::answer(answer).in_one_go(),
    ] {
        provider.next(reply);
        assert_eq!(text_of(chat(&provider, &hello_streamed())).await, whole);
    }
}

#[tokio::test]
async fn a_raw_answer_is_byte_for_byte() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, "text/html".parse().unwrap())]);
    provider.next(Reply::raw(StatusCode::BAD_GATEWAY, headers, ["<html>", "oh no"]));
    let response = chat(&provider, &hello()).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(response.headers()["content-type"], "text/html");
    assert_eq!(read(response).await, (b"<html>oh no".to_vec(), true));

    provider.next(Reply::raw_json("{}"));
    let response = chat(&provider, &hello()).send().await.unwrap();
    assert_eq!(response.content_length(), Some(2));
    assert_eq!(read(response).await, (b"{}".to_vec(), true));
}

#[tokio::test]
async fn garbage_and_emptiness_come_with_status_200() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    for (reply, ask) in [(Reply::garbage(), hello()), (Reply::garbage(), hello_streamed())] {
        provider.next(reply);
        let response = chat(&provider, &ask).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let (bytes, complete) = read(response).await;
        assert!(complete);
        let text = String::from_utf8(bytes).unwrap();
        let first = text.lines().next().unwrap();
        assert!(serde_json::from_str::<Value>(first.strip_prefix("data: ").unwrap_or(first)).is_err());
    }
    for ask in [hello(), hello_streamed()] {
        provider.next(Reply::empty());
        assert_eq!(text_of(chat(&provider, &ask)).await, "");
    }
    assert_eq!(provider.totals().tokens, Tokens::default());
}

#[tokio::test]
async fn a_stream_can_end_properly_and_too_early() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let whole = text_of(chat(&provider, &hello_streamed())).await;
    provider.next(Reply::text("This is a scripted answer.").without_terminator());
    let text = text_of(chat(&provider, &hello_streamed())).await;
    assert_eq!(whole, format!("{text}data: [DONE]\n\n"));
    provider.next(Reply::text("This is a scripted answer.").stopped_after(2));
    let text = text_of(chat(&provider, &hello_streamed())).await;
    assert_eq!(payloads(&text).len(), 2);
}

#[tokio::test]
async fn a_stream_reports_its_failure_in_its_own_format() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.always(
        Reply::text("This is a scripted answer.")
            .failed_after(3, Failure::new(StatusCode::SERVICE_UNAVAILABLE)),
    );
    let events = payloads(&text_of(chat(&provider, &hello_counted())).await);
    assert_eq!(events.len(), 4);
    assert_eq!(events[3]["error"]["type"], "server_error");

    let ask = json!({"model": "m", "max_tokens": 9, "messages": [], "stream": true});
    let text = text_of(messages(&provider, &ask)).await;
    assert!(text.contains("event: error\n"));
    assert_eq!(payloads(&text)[3]["error"]["type"], "overloaded_error");

    let ask = json!({"model": "m", "input": "x", "stream": true});
    let events = payloads(&text_of(post(&provider, "/v1/responses", &ask)).await);
    assert_eq!((&events[3]["type"], &events[4]["type"]), (&json!("error"), &json!("response.failed")));
    assert_eq!(provider.totals().tokens, Tokens::default(), "a failed answer reports no usage");
}

#[tokio::test]
async fn usage_is_absent_when_the_script_says_so() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.always(Answer::text("Who knows.").without_usage());
    assert!(json_of(chat(&provider, &hello())).await.get("usage").is_none());
    let events = payloads(&text_of(chat(&provider, &hello_counted())).await);
    assert!(events.iter().all(|event| event["choices"] != json!([])));
    let ask = json!({"model": "m", "max_tokens": 9, "messages": []});
    assert!(json_of(messages(&provider, &ask)).await.get("usage").is_none());
    let embeddings = json_of(post(&provider, "/v1/embeddings", &json!({"model": "m", "input": "x"}))).await;
    assert!(embeddings.get("usage").is_none());
}

#[tokio::test]
async fn dropping_the_provider_closes_its_port() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let url = format!("{}/models", provider.base_url());
    provider.stop().await;
    assert!(soon(Client::new().get(url).send()).await.unwrap_err().is_connect());
}
