//! The body of an upload, and the watch over it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use tokio::io::{AsyncRead, AsyncReadExt};

const PIECE: usize = 128 << 10;

/// An upload that is under way: what the watch over it sees.
#[derive(Default)]
pub(crate) struct Sending {
    sent: AtomicU64,
    /// There is nothing to send at the moment, or any more.
    waiting: AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

impl Sending {
    /// Why the source could not be read, if that is what went wrong.
    pub(crate) fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The body of an upload: exactly `len` bytes, counted as they leave.
pub(crate) fn upload_body(
    reader: Box<dyn AsyncRead + Send + Unpin>,
    len: u64,
    sending: Arc<Sending>,
    on_sent: Arc<dyn Fn(u64) + Send + Sync>,
) -> reqwest::Body {
    let pieces = stream::try_unfold((reader, 0u64), move |(mut reader, done)| {
        let (sending, on_sent) = (sending.clone(), on_sent.clone());
        async move {
            if done == len {
                return Ok(None);
            }
            let mut buffer = bytes::BytesMut::with_capacity(PIECE);
            let mut limited = (&mut reader).take(len - done);
            let read = limited.read_buf(&mut buffer).await.and_then(|n| match n {
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends {} bytes early", len - done))),
                n => Ok(n as u64),
            });
            match read {
                Ok(n) => {
                    sending.sent.store(done + n, Ordering::Relaxed);
                    on_sent(done + n);
                    Ok(Some((buffer.freeze(), (reader, done + n))))
                }
                Err(error) => {
                    let told = io::Error::new(error.kind(), "source");
                    *sending.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Err(told)
                }
            }
        }
    });
    reqwest::Body::wrap_stream(pieces)
}

/// The body of an upload that ends when its source does.
pub(crate) fn growing_body(
    reader: Box<dyn AsyncRead + Send + Unpin>,
    sending: Arc<Sending>,
    on_sent: Arc<dyn Fn(u64) + Send + Sync>,
) -> reqwest::Body {
    let pieces = stream::try_unfold((reader, 0u64), move |(mut reader, done)| {
        let (sending, on_sent) = (sending.clone(), on_sent.clone());
        async move {
            let mut buffer = bytes::BytesMut::with_capacity(PIECE);
            sending.waiting.store(true, Ordering::Relaxed);
            let read = reader.read_buf(&mut buffer).await;
            match read {
                // It goes on waiting: for the answer.
                Ok(0) => Ok(None),
                Ok(n) => {
                    let done = done + n as u64;
                    sending.waiting.store(false, Ordering::Relaxed);
                    sending.sent.store(done, Ordering::Relaxed);
                    on_sent(done);
                    Ok(Some((buffer.freeze(), (reader, done))))
                }
                Err(error) => {
                    let told = io::Error::new(error.kind(), "source");
                    *sending.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Err(told)
                }
            }
        }
    });
    reqwest::Body::wrap_stream(pieces)
}

/// Waits for the answer to an upload while bytes leave. `None`: nothing moved for `stall`; once all is sent a registry may take
/// five times as long, since it may copy the blob before it answers. Without a length the source is waited for.
pub(crate) async fn watch<T>(
    send: impl Future<Output = T>,
    sending: &Sending,
    len: Option<u64>,
    stall: Duration,
) -> Option<T> {
    let mut send = std::pin::pin!(send);
    let (mut seen, mut idle) = (0, 0);
    loop {
        tokio::select! {
            answer = &mut send => return Some(answer),
            () = tokio::time::sleep(stall) => {}
        }
        let sent = sending.sent.load(Ordering::Relaxed);
        idle = if sent == seen { idle + 1 } else { 0 };
        seen = sent;
        let all_sent = match len {
            Some(len) => sent == len,
            None => sending.waiting.load(Ordering::Relaxed),
        };
        if idle >= if all_sent { 5 } else { 1 } {
            return None;
        }
    }
}
