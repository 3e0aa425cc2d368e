//! Ends a connection whose client has stopped reading, and lets what was taken for it go out first where
//! it has stopped sending.
//!
//! HTTP/1 has no deadline for writes: without one, a client that never reads would keep its
//! request's place, and its sequences in the engine, for ever.
//!
//! A client that sends no more has left, and hyper drops the connection at once, with whatever it has
//! taken of the answer and not written yet (tokio makes a busy task wait between the two). That was
//! counted, and would be billed. So the end of what a client sends is told to hyper only when hyper has
//! written all that it has taken: it flushes the stream when, and only when, its own buffer is empty.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A byte stream whose writes fail once one has waited longer than `limit`.
pub struct StallGuard<S> {
    stream: S,
    limit: Duration,
    /// Runs while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
    reading: Reading,
}

/// What the client sends.
enum Reading {
    Open,
    /// Nothing more; not told yet.
    Ended(Waker),
    Told,
}

impl<S> StallGuard<S> {
    pub fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            deadline: None,
            reading: Reading::Open,
        }
    }

    /// Everything that was taken is written.
    fn written(&mut self) {
        if let Reading::Ended(reader) = &self.reading {
            reader.wake_by_ref();
            self.reading = Reading::Told;
        }
    }

    /// Turns a write that waits too long into an error.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.deadline = None;
            return write;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.reading {
            Reading::Open => {}
            Reading::Ended(ref mut reader) => {
                reader.clone_from(context.waker());
                return Poll::Pending;
            }
            Reading::Told => return Poll::Ready(Ok(())),
        }
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let ended = matches!(read, Poll::Ready(Ok(()))) && room > 0;
        if ended && buffer.filled().len() == before {
            self.reading = Reading::Ended(context.waker().clone());
            return Poll::Pending;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TCP has nothing to flush: a flush that is ready says nothing about a write that waits.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.written();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_reader_that_stops_ends_the_writer_and_one_that_reads_does_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut guard = StallGuard::new(near, Duration::from_millis(20));
        let mut read = [0; 16];
        let (written, got) = tokio::join!(guard.write_all(&[7; 16]), far.read_exact(&mut read));
        written.unwrap();
        got.unwrap();
        // Nobody reads now: 8 bytes fit, the ninth waits.
        let error = guard.write_all(&[7; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// Polls a read of one byte once: how many came, if it is ready.
    fn read(guard: &mut StallGuard<tokio::io::DuplexStream>) -> Poll<usize> {
        let mut bytes = [0; 1];
        let mut buffer = ReadBuf::new(&mut bytes);
        let mut context = Context::from_waker(Waker::noop());
        let read = Pin::new(guard).poll_read(&mut context, &mut buffer);
        read.map(|done| done.map(|()| buffer.filled().len()).unwrap())
    }

    fn flush(guard: &mut StallGuard<tokio::io::DuplexStream>) {
        let mut context = Context::from_waker(Waker::noop());
        let flushed = Pin::new(guard).poll_flush(&mut context);
        assert!(matches!(flushed, Poll::Ready(Ok(()))));
    }

    #[tokio::test]
    async fn the_end_is_told_once_all_is_written() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut guard = StallGuard::new(near, Duration::from_secs(60));
        far.write_all(b"x").await.unwrap();
        // It shuts down its sending half, and goes on reading.
        far.shutdown().await.unwrap();
        flush(&mut guard);
        assert_eq!(read(&mut guard), Poll::Ready(1));
        assert_eq!(read(&mut guard), Poll::Pending);
        assert_eq!(read(&mut guard), Poll::Pending);
        let mut context = Context::from_waker(Waker::noop());
        let wrote = Pin::new(&mut guard).poll_write(&mut context, b"rest");
        assert!(matches!(wrote, Poll::Ready(Ok(4))));
        assert_eq!(read(&mut guard), Poll::Pending);
        flush(&mut guard);
        assert_eq!(read(&mut guard), Poll::Ready(0));
        drop(guard);
        let mut got = String::new();
        far.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "rest");
    }
}
