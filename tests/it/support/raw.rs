//! Servers without an HTTP implementation: they read a request and write bytes.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Answers every request with exactly these bytes and closes; returns the base URL.
pub async fn answering(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = read_request(&mut connection).await;
            let _ = connection.write_all(&bytes).await;
        }
    });
    format!("http://{address}/v1")
}

/// The head and the body of one request.
pub async fn read_request(connection: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let mut piece = [0; 4096];
        let length = connection.read(&mut piece).await.ok().filter(|length| *length > 0)?;
        read.extend_from_slice(&piece[..length]);
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
        })
        .unwrap_or(0);
    let mut body = read.split_off(end);
    let begun = body.len();
    if begun < length {
        body.resize(length, 0);
        connection.read_exact(&mut body[begun..]).await.ok()?;
    }
    Some((head, body))
}
