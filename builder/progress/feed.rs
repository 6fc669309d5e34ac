//! Waits for events on a thread, with a time limit, and until told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use solver::{Event, Events};

pub(super) struct Feed {
    events: Events,
    stop: Arc<AtomicBool>,
    stopped: Option<Instant>,
    waker: Waker,
}

/// Whoever still emits events after the stop is listened to for this long.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) enum Next {
    Event(Event),
    /// The time is up.
    Nothing,
    /// No more will come.
    End,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Feed {
    /// For use on the calling thread, which whoever sets `stop` must unpark.
    pub(super) fn new(events: Events, stop: Arc<AtomicBool>) -> Self {
        Self { events, stop, stopped: None, waker: Waker::from(Arc::new(Unpark(std::thread::current()))) }
    }

    pub(super) fn try_next(&mut self) -> Option<Event> {
        self.events.try_next()
    }

    /// Waits at most `limit` for the next event.
    pub(super) fn next(&mut self, limit: Option<Duration>) -> Next {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if self.stop.load(Ordering::SeqCst) && self.stopped.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS
            {
                return Next::End;
            }
            match self.poll() {
                Poll::Ready(Some(event)) => return Next::Event(event),
                Poll::Ready(None) => return Next::End,
                Poll::Pending => {}
            }
            if self.stop.load(Ordering::SeqCst) {
                // What was emitted before the stop may have come in since.
                return self.events.try_next().map_or(Next::End, Next::Event);
            }
            match deadline {
                None => std::thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Next::Nothing;
                    }
                    std::thread::park_timeout(left);
                }
            }
        }
    }

    fn poll(&mut self) -> Poll<Option<Event>> {
        let next = pin!(self.events.next());
        next.poll(&mut Context::from_waker(&self.waker))
    }
}
