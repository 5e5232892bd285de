//! What a runtime and its collector say to each other over their Unix socket: requests and replies in turn, each one packet
//! (`SOCK_SEQPACKET`). A packet is a JSON object, then perhaps a line feed and bytes, and perhaps file descriptors beside it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::profile::Sampled;
use crate::slots::{Detail, Level};

/// The version of these messages.
pub(crate) const PROTOCOL: u32 = 2;

/// The longest packet, in bytes.
pub(crate) const PACKET_MAX: usize = 96 << 10;

/// File descriptors beside one packet.
const FDS_MAX: usize = 2;

/// What a runtime asks for. The first is [`Request::Load`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Probes for this process.
    Load { protocol: u32, abi: u32, version: String, threads_max: u32, scheduling: bool },
    /// A thread, by the id that it knows itself by, has a slot.
    Register { slot: u32, tid: u32 },
    /// It has it no more.
    Unregister { slot: u32 },
    /// Another level.
    Level(Level),
    /// The process's system calls.
    Calls,
    /// What the probes could not do.
    Failures,
    /// Samples shall be left.
    Profile(Sampled),
    /// The samples that there are.
    Samples,
    /// No more of them.
    EndProfile,
}

/// What the collector answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The probes are attached. Beside it come the map of the slots, and the end of a pipe whose other end is closed before any
    /// probe goes.
    Loaded { detail: Detail },
    /// It is done.
    Done,
    /// How many there were, and how many of threads without a slot.
    Calls { all: u64, other: u64 },
    /// By name.
    Failures(BTreeMap<Cow<'static, str>, u64>),
    /// Samples come behind it; none: there is none now.
    Samples,
    /// Another profile is being taken.
    Busy,
    /// It is not done, and why.
    Refused { why: String },
}

/// A packet that came.
pub(crate) struct Packet<T> {
    pub(crate) message: T,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Sends one packet.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut packet = serde_json::to_vec(message)?;
    packet.push(b'\n');
    packet.extend_from_slice(bytes);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("no room for a file descriptor"));
    }
    // A reader that has gone is an error, and no signal.
    sendmsg(socket, &[IoSlice::new(&packet)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; `None` when the other side has gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<Packet<T>>> {
    let mut packet = vec![0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of more than {PACKET_MAX} bytes")));
    }
    packet.truncate(received.bytes);
    let end = packet.iter().position(|byte| *byte == b'\n').unwrap_or(packet.len());
    let message = serde_json::from_slice(&packet[..end])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("no message of ours: {error}")))?;
    let bytes = packet.get(end + 1..).unwrap_or_default().to_vec();
    Ok(Some(Packet { message, bytes, fds }))
}

/// How long to wait for the other side, in each direction.
pub(crate) fn set_patience(socket: impl AsFd, patience: Duration) -> io::Result<()> {
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, Some(patience))?;
    }
    Ok(())
}
