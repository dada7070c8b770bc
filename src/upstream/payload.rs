//! A request body as it is sent: the frames that came in, whole and known in length.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// The frames of one body. Cloning it copies no bytes.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    frames: VecDeque<Bytes>,
    remaining: u64,
}

impl Payload {
    /// Takes the next frame as it is, unless it and the one before are both tiny.
    ///
    /// A frame is a slice of the read buffer it came in and keeps all of it alive: a body of many tiny chunks
    /// would hold far more memory than its limit says. Below 4 KiB a copy costs less than a frame of its own
    /// on the way out.
    pub fn push(&mut self, frame: Bytes) {
        if frame.is_empty() {
            return;
        }
        self.remaining += frame.len() as u64;
        match self.frames.back_mut() {
            Some(last) if last.len() < TINY && frame.len() < TINY => *last = joined(std::mem::take(last), &frame),
            _ => self.frames.push_back(frame),
        }
    }

    /// Bytes not yet sent.
    pub fn len(&self) -> u64 {
        self.remaining
    }

    /// Whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.remaining == 0
    }
}

/// Bounds the frames of a body to two for every 4 KiB. hyper joins none: TLS takes many buffers in one write.
const TINY: usize = 4096;

fn joined(first: Bytes, second: &[u8]) -> Bytes {
    let mut buffer = first.try_into_mut().unwrap_or_else(|shared| {
        let mut buffer = BytesMut::with_capacity(2 * TINY);
        buffer.extend_from_slice(&shared);
        buffer
    });
    buffer.extend_from_slice(second);
    buffer.freeze()
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(frame) = self.frames.pop_front() else {
            return Poll::Ready(None);
        };
        self.remaining -= frame.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(frames: &[&[u8]]) -> Payload {
        let mut payload = Payload::default();
        frames.iter().for_each(|frame| payload.push(Bytes::copy_from_slice(frame)));
        payload
    }

    #[test]
    fn a_frame_that_came_alone_is_sent_without_a_copy() {
        let frame = Bytes::from(vec![7; 100]);
        let mut payload = Payload::default();
        payload.push(frame.clone());
        assert_eq!(payload.frames[0].as_ptr(), frame.as_ptr());
    }

    #[test]
    fn large_frames_are_never_copied() {
        let frames = [Bytes::from(vec![1; TINY]), Bytes::from(vec![2; 2 * TINY])];
        let mut payload = Payload::default();
        frames.iter().for_each(|frame| payload.push(frame.clone()));
        let sent: Vec<_> = payload.frames.iter().map(|frame| frame.as_ptr()).collect();
        assert_eq!(sent, frames.map(|frame| frame.as_ptr()));
    }

    #[test]
    fn many_tiny_frames_become_few_and_keep_their_order() {
        let tiny: Vec<Vec<u8>> = (0..10_000_u32).map(|n| vec![n as u8]).collect();
        let frames: Vec<&[u8]> = tiny.iter().map(Vec::as_slice).collect();
        let payload = payload(&frames);
        assert_eq!(payload.len(), 10_000);
        assert!(payload.frames.len() <= 5, "{} frames", payload.frames.len());
        assert_eq!(payload.frames.iter().flatten().copied().collect::<Vec<u8>>(), tiny.concat());
    }
}
