//! The socket of an outgoing request: what the kernel says of its connection is asked for when it is closed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::egress::Calls;

/// A connection of an invocation's `index`th request.
pub(crate) struct Socket {
    stream: TcpStream,
    calls: Arc<Calls>,
    index: usize,
}

impl Socket {
    /// Connects, and notes the peer.
    pub async fn connect(calls: &Arc<Calls>, index: usize, address: SocketAddr) -> io::Result<Self> {
        calls.note(index, |network| network.peer = Some(address.to_string()));
        let stream = TcpStream::connect(address).await?;
        Ok(Self { stream, calls: calls.clone(), index })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        match tcp_info::of(&self.stream) {
            Ok(info) => self.calls.note(self.index, |network| info.note(network)),
            // Then it is unknown, and says nothing.
            Err(error) => tracing::debug!(%error, "the kernel says nothing of a connection"),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `TCP_INFO`: one system call, which needs no privilege.
///
/// The structure grows at its end with the kernel's age; what an older kernel does not fill in is unknown. Offsets are those of
/// `struct tcp_info` in linux/tcp.h, which is an ABI.
mod tcp_info {
    #![allow(unsafe_code, reason = "the library's structure ends before the bytes that were sent")]

    use std::io;
    use std::os::fd::{AsFd, AsRawFd as _};

    use nexus_core::outcome::Network;

    const RTT_US: usize = 68;
    const TOTAL_RETRANS: usize = 100;
    const BYTES_RECEIVED: usize = 128;
    const BYTES_SENT: usize = 200;
    const BYTES_RETRANS: usize = 208;
    const LEN: usize = 216;

    pub(super) struct Info {
        bytes: [u8; LEN],
        len: usize,
    }

    /// What the kernel says of a socket now.
    pub(super) fn of(socket: impl AsFd) -> io::Result<Info> {
        let mut info = Info { bytes: [0; LEN], len: 0 };
        let mut len = LEN as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to the buffer, which has them, and to `len` itself.
        let ret = unsafe {
            let fd = socket.as_fd().as_raw_fd();
            libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.bytes.as_mut_ptr().cast(), &raw mut len)
        };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
        info.len = (len as usize).min(LEN);
        Ok(info)
    }

    impl Info {
        fn number<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
            self.bytes[..self.len].get(at..)?.first_chunk::<N>().copied()
        }

        fn u32(&self, at: usize) -> Option<u64> {
            self.number(at).map(u32::from_ne_bytes).map(u64::from)
        }

        fn u64(&self, at: usize) -> Option<u64> {
            self.number(at).map(u64::from_ne_bytes)
        }

        pub(super) fn note(&self, network: &mut Network) {
            network.rtt_ns = self.u32(RTT_US).map(|us| us * 1000);
            network.retransmits = self.u32(TOTAL_RETRANS);
            network.bytes_received = self.u64(BYTES_RECEIVED);
            let again = self.u64(BYTES_RETRANS);
            network.bytes_sent = self.u64(BYTES_SENT).and_then(|sent| sent.checked_sub(again?));
        }
    }
}
