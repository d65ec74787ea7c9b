use std::path::Path;

use super::*;

#[tokio::test]
async fn a_recording_is_replayed_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let chat_folder = folder.path().join("openai-chat");
    let anthropic_folder = folder.path().join("anthropic");
    std::fs::create_dir_all(&chat_folder).unwrap();
    std::fs::create_dir_all(&anthropic_folder).unwrap();
    let line = r#"{"id":"1","choices":[{"index":0,"delta":{"content":"Hi"}}],"x_extra":[1]}"#;
    let usage = r#"{"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
    std::fs::write(chat_folder.join("a.chunks.txt"), format!("{line}\n{usage}")).unwrap();
    std::fs::write(chat_folder.join("a.json"), r#"{"id":"1","usage":{"prompt_tokens":5}}"#).unwrap();
    let stop = r#"{"type":"message_stop"}"#;
    let delta = r#"{"type":"message_delta","usage":{"input_tokens":1,"cache_read_input_tokens":2,"output_tokens":9}}"#;
    std::fs::write(anthropic_folder.join("b.chunks.txt"), format!("{delta}\n{stop}\n")).unwrap();

    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.always(Reply::recorded(chat_folder.join("a")).unwrap());
    let text = text_of(chat(&provider, &hello_streamed())).await;
    assert_eq!(text, format!("data: {line}\n\ndata: {usage}\n\ndata: [DONE]\n\n"));
    assert_eq!(text_of(chat(&provider, &hello())).await, r#"{"id":"1","usage":{"prompt_tokens":5}}"#);
    assert_eq!(provider.totals().tokens, Tokens { prompt: 8, completion: 4, ..Tokens::default() });

    provider.always(Reply::recorded(anthropic_folder.join("b.chunks.txt")).unwrap());
    let ask = json!({"model": "m", "max_tokens": 1, "messages": [], "stream": true});
    let text = text_of(messages(&provider, &ask)).await;
    let expected = format!("event: message_delta\ndata: {delta}\n\nevent: message_stop\ndata: {stop}\n\n");
    assert_eq!(text, expected);
    let tokens = provider.totals_at(Endpoint::Messages).tokens;
    assert_eq!((tokens.prompt, tokens.cached, tokens.completion), (3, 2, 9));

    assert!(matches!(Reply::recorded(folder.path().join("c")), Err(RecordingError::Missing(_))));
}

/// The shared recordings of real providers, if this machine has them beside or above the repository.
#[test]
#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn every_shared_recording_loads_and_reports_usage() {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let Some(folder) = above.map(|at| at.join("shared/fixtures/recorded")).find(|folder| folder.is_dir())
    else {
        eprintln!("skipped: no shared/fixtures/recorded");
        return;
    };
    let mut loaded = 0;
    for format in ["openai-chat", "openai-responses", "anthropic", "embeddings"] {
        for file in std::fs::read_dir(folder.join(format)).unwrap() {
            let path = file.unwrap().path();
            let recording = super::super::recorded::Recording::load(&path).unwrap();
            let streamed = path.to_string_lossy().ends_with(".chunks.txt");
            let pieces = recording.pieces(streamed);
            assert_eq!(pieces.is_stream, streamed);
            let is_error = path.to_string_lossy().contains("/error.");
            assert_eq!(pieces.usage.prompt.is_some(), !is_error, "{}", path.display());
            loaded += 1;
        }
    }
    assert!(loaded > 0);
}
