//! The socket beneath TLS. The event loop looks at it once in a turn, and a turn may be long: a seal takes a third of a
//! millisecond, and there may be several. So before a request is written the socket is asked itself. Must not know TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection to a bank, or to a company's proxy.
pub(super) struct Wire {
    tcp: TcpStream,
    /// Whether the socket is asked even where the event loop knows of nothing.
    looks: bool,
}

impl Wire {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, looks: false }
    }

    /// Has what is read from now on come from the socket itself, until that is empty.
    pub(super) fn look(&mut self) {
        self.looks = true;
    }

    fn receive(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match rustix::net::recv(&self.tcp, buf.initialize_unfilled(), RecvFlags::DONTWAIT) {
            Ok((read, _)) => {
                buf.advance(read);
                Poll::Ready(Ok(()))
            }
            // The event loop has been asked before, and will wake whoever waits.
            Err(Errno::AGAIN) => {
                self.looks = false;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.tcp).poll_read(cx, buf) {
            Poll::Pending if self.looks => self.receive(buf),
            read => read,
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::Shutdown;
    use std::task::Waker;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A wire of which the event loop knows that nothing has come in, and its other end.
    async fn silent() -> (Wire, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let tcp = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (theirs, _) = listener.accept().expect("connected");
        let mut wire = Wire::new(tcp);
        assert!(read(&mut wire).is_pending());
        (wire, theirs)
    }

    fn read(wire: &mut Wire) -> Poll<io::Result<Vec<u8>>> {
        let mut bytes = [0; 8];
        let mut buf = ReadBuf::new(&mut bytes);
        let result = Pin::new(wire).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
        result.map_ok(|()| buf.filled().to_vec())
    }

    #[tokio::test]
    async fn a_look_sees_what_the_event_loop_has_not_seen() {
        let (mut wire, mut theirs) = silent().await;
        theirs.write_all(b"twelve bytes").expect("written");
        assert!(read(&mut wire).is_pending(), "there was no turn of the loop: else this test shows nothing");
        wire.look();
        assert!(matches!(read(&mut wire), Poll::Ready(Ok(bytes)) if bytes == b"twelve b"));
        assert!(matches!(read(&mut wire), Poll::Ready(Ok(bytes)) if bytes == b"ytes"), "to the end");
        assert!(read(&mut wire).is_pending());
        theirs.write_all(b"more").expect("written");
        assert!(read(&mut wire).is_pending(), "one look is over where nothing was left");
        drop(theirs);
        let mut rest = Vec::new();
        wire.read_to_end(&mut rest).await.expect("the loop goes on");
        assert_eq!(rest, b"more");
    }

    #[tokio::test]
    async fn a_look_sees_an_end() {
        let (mut wire, theirs) = silent().await;
        theirs.shutdown(Shutdown::Write).expect("connected");
        wire.look();
        assert!(matches!(read(&mut wire), Poll::Ready(Ok(bytes)) if bytes.is_empty()));
    }

    #[tokio::test]
    async fn a_look_sees_a_reset() {
        let (mut wire, theirs) = silent().await;
        rustix::net::sockopt::set_socket_linger(&theirs, Some(std::time::Duration::ZERO)).expect("a socket");
        drop(theirs);
        wire.look();
        let Poll::Ready(Err(error)) = read(&mut wire) else { panic!("no error") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_after_a_look() {
        let (mut wire, mut theirs) = silent().await;
        wire.look();
        let waits = tokio::spawn(async move { wire.read_u32().await });
        tokio::task::yield_now().await;
        theirs.write_all(b"late").expect("written");
        assert_eq!(waits.await.expect("no panic").expect("woken"), u32::from_be_bytes(*b"late"));
    }
}
