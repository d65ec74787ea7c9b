//! The generator against a scripted provider in the gateway's place.

use http::StatusCode;

use crate::demo::provider::{Answer, Endpoint, Failure, Gate, Reply, ScriptedProvider};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn plan() -> Plan {
    Plan {
        keys: vec!["sk-1".into()],
        small_request_key: "sk-2".into(),
        small_token_key: "sk-3".into(),
        chat_models: vec!["gpt-4o-mini".into()],
        embedding_models: vec!["text-embedding-3-small".into()],
    }
}

/// The first planned job of this kind.
fn job(kind: Kind) -> Job {
    let mut planner = Planner::new(plan(), 1);
    std::iter::repeat_with(|| planner.next_job()).find(|job| job.kind == kind).unwrap()
}

async fn seen(client: &Client, kind: Kind) -> Seen {
    tokio::time::timeout(PATIENCE, client.send(&job(kind), std::time::Instant::now())).await.unwrap()
}

#[tokio::test]
async fn a_client_sees_how_its_request_ended() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let client = Client::new(provider.addr(), Arrivals::default());
    provider.always(Answer::text("One two three.").tokens(9, 3));

    for kind in [Kind::Chat, Kind::Embedding, Kind::StreamWithUsage] {
        let seen = seen(&client, kind).await;
        assert_eq!((seen.ending, seen.status), (Ending::Completed, Some(200)), "{kind:?}");
        assert_eq!(seen.tokens.unwrap().prompt, 9);
        assert_eq!(seen.first_content.is_some(), kind == Kind::StreamWithUsage);
    }
    assert_eq!(seen(&client, Kind::Stream).await.tokens, None, "nobody asked");

    let text = || Reply::text("One two three.");
    for (reply, kind) in [
        (text().cut_after(2), Kind::Stream),
        (text().cut_after(1), Kind::Chat),
        (text().without_terminator(), Kind::Stream),
        (text().failed_after(2, Failure::new(StatusCode::INTERNAL_SERVER_ERROR)), Kind::Stream),
        (Reply::garbage(), Kind::Chat),
        (Reply::garbage(), Kind::Stream),
        (Reply::status(StatusCode::UNAUTHORIZED), Kind::Chat),
        (Reply::rate_limited(Duration::from_secs(1)), Kind::Chat),
    ] {
        provider.next(reply);
        assert_eq!(seen(&client, kind).await.ending, Ending::Failed, "the errors of a provider are failures");
    }
    provider.next(Reply::dropped());
    let none = seen(&client, Kind::Chat).await;
    assert_eq!((none.ending, none.status), (Ending::NoAnswer, None));
}

#[tokio::test]
async fn the_gateways_own_refusals_are_told_from_the_providers() {
    use crate::domain::label::RejectReason;
    let provider = ScriptedProvider::spawn().await.unwrap();
    let client = Client::new(provider.addr(), Arrivals::default());
    for (status, code, reason) in [
        (401, "invalid_api_key", RejectReason::InvalidApiKey),
        (401, "missing_api_key", RejectReason::MissingApiKey),
        (404, "model_not_found", RejectReason::ModelNotFound),
        (429, "rate_limit_exceeded", RejectReason::RateLimited),
        (503, "overloaded", RejectReason::Overloaded),
    ] {
        let body = serde_json::json!({"error": {"message": "No.", "type": "x", "code": code}}).to_string();
        provider.next(Reply::raw_json(body).with_status(StatusCode::from_u16(status).unwrap()));
        assert_eq!(seen(&client, Kind::Chat).await.ending, Ending::Rejected(reason));
    }
    let body = serde_json::json!({"error": {"message": "No.", "code": "all_providers_failed"}}).to_string();
    provider.next(Reply::raw_json(body).with_status(StatusCode::BAD_GATEWAY));
    assert_eq!(seen(&client, Kind::Chat).await.ending, Ending::Failed);
}

#[tokio::test]
async fn clients_leave_when_they_mean_to_and_not_before_their_request_has_arrived() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let arrivals = Arrivals::default();
    let client = Client::new(provider.addr(), arrivals.clone());
    let gate = Gate::new();
    let held = gate.clone();
    provider.rule(move |_, ask| {
        arrivals.announce(ask.user.as_deref()?);
        Some(Reply::text("Held back.").stalled_after(3, &held).held_by_unless_streamed(ask, &held))
    });
    assert_eq!(seen(&client, Kind::LeavesWaiting).await.ending, Ending::Left);
    tokio::time::timeout(PATIENCE, provider.until(|calls| calls[0].client_left())).await.unwrap();
    assert_eq!(seen(&client, Kind::LeavesMidStream).await.ending, Ending::Left);
    tokio::time::timeout(PATIENCE, provider.until(|calls| calls[1].client_left())).await.unwrap();
}

impl Reply {
    fn held_by_unless_streamed(self, ask: &crate::demo::provider::Ask, gate: &Gate) -> Self {
        if ask.stream { self } else { self.held_by(gate) }
    }
}

#[tokio::test]
async fn everything_that_is_due_is_sent_and_counted_once() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let arrivals = Arrivals::default();
    let traffic = Traffic::new(Client::new(provider.addr(), arrivals.clone()), 400.0);
    provider.rule(move |_, ask| {
        arrivals.announce(ask.user.as_deref()?);
        None
    });
    provider.always(Reply::text("One two three.").after(Duration::from_millis(30)));
    let stop = CancellationToken::new();
    let deadline = async {
        provider.until_called(200).await;
        stop.cancel();
    };
    let run = traffic.run(Planner::new(plan(), 5), stop.clone());
    tokio::time::timeout(PATIENCE, async { tokio::join!(run, deadline) }).await.unwrap();

    let tally = traffic.tally();
    let totals = provider.totals();
    assert_eq!(tally.sent(), totals.requests, "what was sent has arrived");
    let left = tally.ended(Ending::Left, |_| true);
    assert_eq!(tally.ended(Ending::Completed, |_| true) + left, tally.sent());
    let embeddings = tally.ended(Ending::Completed, |kind| kind == Kind::Embedding);
    assert_eq!(embeddings, provider.totals_at(Endpoint::Embeddings).answered);
    assert!(tally.latency.quantile(0.5).unwrap() >= Duration::from_millis(30));
}
