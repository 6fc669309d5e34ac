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
    /// Events that are still taken after the stop.
    left: usize,
    waker: Waker,
}

/// More than can be on their way at the stop, as a printing step waits when thousands are: all of those are shown, and who
/// goes on emitting does not keep the display alive for ever.
const LAST_WORDS: usize = 1 << 17;

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
        Self { events, stop, left: LAST_WORDS, waker: Waker::from(Arc::new(Unpark(std::thread::current()))) }
    }

    pub(super) fn try_next(&mut self) -> Option<Event> {
        match self.events.try_next().map(|event| self.counted(event))? {
            Next::Event(event) => Some(event),
            Next::Nothing | Next::End => None,
        }
    }

    /// Waits at most `limit` for the next event.
    pub(super) fn next(&mut self, limit: Option<Duration>) -> Next {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            match self.poll() {
                Poll::Ready(Some(event)) => return self.counted(event),
                Poll::Ready(None) => return Next::End,
                Poll::Pending => {}
            }
            if self.stop.load(Ordering::SeqCst) {
                // What was emitted before the stop may have come in since.
                return self.events.try_next().map_or(Next::End, |event| self.counted(event));
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

    fn counted(&mut self, event: Event) -> Next {
        if self.stop.load(Ordering::SeqCst) {
            match self.left.checked_sub(1) {
                Some(left) => self.left = left,
                None => return Next::End,
            }
        }
        Next::Event(event)
    }

    fn poll(&mut self) -> Poll<Option<Event>> {
        let next = pin!(self.events.next());
        next.poll(&mut Context::from_waker(&self.waker))
    }
}
