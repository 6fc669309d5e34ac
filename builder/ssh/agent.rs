//! The agent protocol (draft-ietf-sshm-ssh-agent), as much of it as a step needs: which keys there are, and signatures.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::key::{Key, Reader, put_string};

/// Who knows the keys.
pub(super) enum Backend {
    /// The caller's agent.
    Agent(PathBuf),
    /// We.
    Keys(Vec<Key>),
}

// Messages, by the protocol's numbers.
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGNATURE: u8 = 14;

/// Largest message, as OpenSSH has it.
const LARGEST: u32 = 256 << 10;
/// Connections that one step may have at a time.
const CONNECTIONS: usize = 64;

/// Answers everybody who connects, for ever.
pub(super) async fn answer_all(listener: UnixListener, backend: Arc<Backend>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    // Ended with us.
    let mut answering = tokio::task::JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Descriptors may be used up for the moment.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        while answering.try_join_next().is_some() {}
        let backend = Arc::clone(&backend);
        answering.spawn(async move {
            // Whoever breaks off, or writes nonsense, is not answered any more.
            let _ = answer(stream, &backend).await;
            drop(slot);
        });
    }
}

async fn answer(mut step: UnixStream, backend: &Backend) -> io::Result<()> {
    let mut agent = None;
    loop {
        let Some(request) = receive(&mut step).await? else { return Ok(()) };
        let permitted = matches!(request.first(), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)));
        // Keys are neither added nor removed by a step, and the agent is not locked by it.
        let reply = match backend {
            _ if !permitted => vec![FAILURE],
            Backend::Keys(keys) => reply(keys, &request).unwrap_or_else(|| vec![FAILURE]),
            Backend::Agent(path) => {
                let agent = match &mut agent {
                    Some(agent) => agent,
                    empty => empty.insert(UnixStream::connect(path).await?),
                };
                send(agent, &request).await?;
                receive(agent).await?.unwrap_or_else(|| vec![FAILURE])
            }
        };
        send(&mut step, &reply).await?;
    }
}

/// `None` for what cannot be done.
fn reply(keys: &[Key], request: &[u8]) -> Option<Vec<u8>> {
    let (kind, body) = request.split_first()?;
    if *kind == REQUEST_IDENTITIES {
        let mut reply = vec![IDENTITIES];
        reply.extend(u32::try_from(keys.len()).ok()?.to_be_bytes());
        for key in keys {
            put_string(&mut reply, key.public());
            put_string(&mut reply, key.comment().as_bytes());
        }
        return Some(reply);
    }
    let mut body = Reader(body);
    let (public, data, flags) = (body.string()?, body.string()?, body.number()?);
    let key = keys.iter().find(|key| key.public() == public)?;
    let mut reply = vec![SIGNATURE];
    put_string(&mut reply, &key.sign(data, flags)?);
    Some(reply)
}

/// One message; `None` at the end.
async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        length => length?,
    };
    if length > LARGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = Vec::new();
    // What was announced and never comes takes no room.
    from.take(u64::from(length)).read_to_end(&mut message).await?;
    if message.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(message))
}

async fn send(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    to.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        let mut truncated = vec![SIGN_REQUEST];
        truncated.extend(1_000_000_u32.to_be_bytes());
        for request in [&[][..], &[0], &[17], &[SIGN_REQUEST], &truncated] {
            assert_eq!(reply(&[], request), None, "{request:?}");
        }
        assert_eq!(reply(&[], &[REQUEST_IDENTITIES]), Some(vec![IDENTITIES, 0, 0, 0, 0]));
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_no_message() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(&[0xff; 8]).await.expect("written");
        assert!(receive(&mut theirs).await.is_err());
    }

    #[tokio::test]
    async fn an_agent_survives_what_a_step_sends_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent");
        let listener = UnixListener::bind(&path).expect("a socket");
        let answering = tokio::spawn(answer_all(listener, Arc::new(Backend::Keys(Vec::new()))));
        let connect = || async { UnixStream::connect(&path).await.expect("somebody listens") };
        for nonsense in [vec![0xff; 100_000], vec![0; 8], vec![0, 0, 0, 9, 1], Vec::new()] {
            // It may be cut off while it still talks.
            let _ = connect().await.write_all(&nonsense).await;
        }
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS - 8 {
            silent.push(connect().await);
        }
        let mut asking = connect().await;
        send(&mut asking, &[REQUEST_IDENTITIES]).await.expect("sent");
        assert_eq!(receive(&mut asking).await.expect("answered"), Some(vec![IDENTITIES, 0, 0, 0, 0]));
        answering.abort();
    }
}
