//! A provider that answers at once: `bench-provider --port 9000`.
//!
//! It speaks just enough of OpenAI's chat completions: a body of one size, or a stream in which every event is a chunk
//! and a write of its own; the usage is always the same. All its output is prepared before the first request.

use std::io::{self, Write as _};
use std::rc::Rc;
use std::time::Duration;

use bench_gateway::awake::Awake;
use bench_gateway::http::{Message, Side};
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Answers chat completions at once.
#[derive(Parser)]
struct Args {
    /// TCP port on 127.0.0.1.
    #[arg(long)]
    port: u16,
    /// Content events of a stream; a finish reason, the usage (when requested) and `[DONE]` follow.
    #[arg(long, default_value_t = 50)]
    chunks: u32,
    /// Milliseconds between two events.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Bytes of text in an answer that is not streamed.
    #[arg(long, default_value_t = 400)]
    text: usize,
}

struct Answers {
    whole: Vec<u8>,
    stream_head: Vec<u8>,
    /// Each event is a chunk of the transfer coding.
    events: Vec<Vec<u8>>,
    usage: Vec<u8>,
    /// `[DONE]` and the end of the body.
    end: Vec<u8>,
    pause: Duration,
}

impl Answers {
    fn new(args: &Args) -> Self {
        let text = "word ".repeat(args.text / 5);
        let body = format!(
            r#"{{"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012","object":"chat.completion","created":1764061200,"model":"bench","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":120,"completion_tokens":80,"total_tokens":200,"prompt_tokens_details":{{"cached_tokens":0,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}},"service_tier":"default","system_fingerprint":"fp_0123456789"}}"#
        );
        let length = body.len();
        let whole = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nx-request-id: req_0123456789abcdef\r\n\
             openai-processing-ms: 1\r\n\r\n{body}"
        );
        let stream_head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n\
             x-request-id: req_0123456789abcdef\r\nopenai-processing-ms: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let event = |choices: &str, usage: &str| {
            chunk(&format!(
                "data: {{\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012\",\"object\":\"chat.completion.chunk\",\"created\":1764061200,\
                 \"model\":\"bench\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{choices}]{usage}}}\n\n"
            ))
        };
        let mut events: Vec<Vec<u8>> = (0..args.chunks)
            .map(|n| {
                let delta = format!(
                    r#"{{"index":0,"delta":{{"content":" word{n}"}},"logprobs":null,"finish_reason":null}}"#
                );
                event(&delta, "")
            })
            .collect();
        events.push(event(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#, ""));
        let usage = event("", r#","usage":{"prompt_tokens":120,"completion_tokens":50,"total_tokens":170}"#);
        let mut end = chunk("data: [DONE]\n\n");
        end.extend_from_slice(b"0\r\n\r\n");
        Self {
            whole: whole.into_bytes(),
            stream_head: stream_head.as_bytes().to_vec(),
            events,
            usage,
            end,
            pause: Duration::from_millis(args.pause_ms),
        }
    }
}

/// One chunk of a chunked body.
fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let answers = Rc::new(Answers::new(&args));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let awake = Rc::new(Awake::default());
        let keeper = awake.clone();
        tokio::task::spawn_local(async move { keeper.keep().await });
        let listener = TcpListener::bind(("127.0.0.1", args.port)).await?;
        writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let (answers, awake) = (answers.clone(), awake.clone());
            tokio::task::spawn_local(async move {
                // A client that disconnects is no error of the provider.
                let _ = serve(stream, &answers, &awake).await;
            });
        }
    })
}

async fn serve(mut stream: TcpStream, answers: &Answers, awake: &Awake) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    let mut body = Vec::new();
    let mut message = Message::new(Side::Request);
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let complete = message
            .feed(&buffer[..read], |data| body.extend_from_slice(data))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if !complete {
            continue;
        }
        awake.stir();
        if is_true(&body, b"\"stream\"") {
            send_stream(&mut stream, answers, is_true(&body, b"\"include_usage\"")).await?;
        } else {
            stream.write_all(&answers.whole).await?;
        }
        message.reset();
        body.clear();
    }
}

async fn send_stream(stream: &mut TcpStream, answers: &Answers, usage: bool) -> io::Result<()> {
    stream.write_all(&answers.stream_head).await?;
    for event in answers.events.iter().chain(usage.then_some(&answers.usage)) {
        stream.write_all(event).await?;
        if answers.pause.is_zero() {
            // Otherwise a whole stream would be sent before any other connection gets its turn.
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(answers.pause).await;
        }
    }
    stream.write_all(&answers.end).await
}

/// Whether the body contains `name: true`; the benches' bodies have the name once.
fn is_true(body: &[u8], name: &[u8]) -> bool {
    memchr::memmem::find(body, name).is_some_and(|at| {
        let value = body[at + name.len()..].trim_ascii_start();
        value.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    })
}
