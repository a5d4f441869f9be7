//! What the hook and the host service say to each other: one request, one answer, each a `u32` length (big-endian) and
//! that many bytes of postcard. Both ends are the same program on one machine, so that there are no versions.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::LONGEST;

/// libvirt's call.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HookRequest {
    /// The VM's name.
    pub vm: String,
    /// `migrate`, `prepare`, `started`, `reconnect`, `stopped` or `release`.
    pub operation: String,
    /// `begin` or `end`.
    pub sub: String,
    /// libvirt's fourth argument: `-`, or since 10.5 why the VM is gone.
    pub extra: String,
    /// The VM's description. Never to be logged.
    pub xml: String,
}

impl std::fmt::Debug for HookRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { vm, operation, sub, extra, xml } = self;
        write!(f, "{operation} {sub} of VM {vm} ({extra}), {} bytes of XML", xml.len())
    }
}

/// What the hook does with it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HookAnswer {
    /// The hook's exit status; 0 for `reconnect` whatever this says.
    pub exit: u8,
    /// The changed XML, or nothing; handed to libvirt after `migrate begin` with exit 0 only.
    pub stdout: String,
    /// What the operator reads, with its end of line.
    pub stderr: String,
}

impl std::fmt::Debug for HookAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {}, {} bytes of XML, {:?}", self.exit, self.stdout.len(), self.stderr)
    }
}

/// The other end did not say something that makes sense.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed or was closed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// More than [`LONGEST`] bytes.
    #[error("{0} bytes are more than the {LONGEST} allowed")]
    TooLong(usize),
    /// Not what was expected: two versions of the program talk to each other.
    #[error("the message cannot be understood; restart the host service after an upgrade")]
    Malformed,
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(|_| WireError::Malformed)?;
    let length = frame.len() - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= LONGEST).ok_or(WireError::TooLong(length))?;
    frame[..4].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

fn length(header: [u8; 4]) -> Result<u64, WireError> {
    let length = u32::from_be_bytes(header);
    match length as usize {
        too_long if too_long > LONGEST => Err(WireError::TooLong(too_long)),
        _ => Ok(length.into()),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8], length: u64) -> Result<T, WireError> {
    if (body.len() as u64) < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed),
    }
}

pub(super) fn write(to: &mut impl Write, message: &impl Serialize) -> Result<(), WireError> {
    Ok(to.write_all(&encode(message)?)?)
}

pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, WireError> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let length = length(header)?;
    // Grows with what arrives, not with what is promised.
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    decode(&body, length)
}

/// The service's end: what libvirt wants. The caller sets the deadline.
///
/// # Errors
/// Where the connection ends early, and for a message that is too long or makes no sense.
pub async fn read_request(from: &mut (impl AsyncRead + Unpin)) -> Result<HookRequest, WireError> {
    let mut header = [0; 4];
    from.read_exact(&mut header).await?;
    let length = length(header)?;
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body).await?;
    decode(&body, length)
}

/// The service's end: what the hook is to do.
///
/// # Errors
/// Where the hook is gone, and for an XML that is too long.
pub async fn write_answer(to: &mut (impl AsyncWrite + Unpin), answer: &HookAnswer) -> Result<(), WireError> {
    to.write_all(&encode(answer)?).await?;
    Ok(to.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> HookAnswer {
        HookAnswer { exit: 1, stdout: "<domain/>".into(), stderr: "no\n".into() }
    }

    #[test]
    fn every_cut_and_every_extra_byte_is_an_error() {
        let frame = encode(&answer()).unwrap();
        assert_eq!(read::<HookAnswer>(&mut &frame[..]).unwrap(), answer());
        for cut in 0..frame.len() {
            assert!(matches!(read::<HookAnswer>(&mut &frame[..cut]), Err(WireError::Io(_))), "{cut}");
        }
        let mut longer = frame.clone();
        longer.push(0);
        longer[3] += 1;
        assert!(matches!(read::<HookAnswer>(&mut &longer[..]), Err(WireError::Malformed)));
        let huge = [0x01, 0, 0, 1, 0, 0];
        assert!(matches!(read::<HookAnswer>(&mut &huge[..]), Err(WireError::TooLong(n)) if n == LONGEST + 1));
        let too_long = HookAnswer { stdout: "x".repeat(LONGEST), ..answer() };
        assert!(matches!(encode(&too_long), Err(WireError::TooLong(_))));
    }

    #[test]
    fn debug_never_shows_the_xml() {
        let request = HookRequest {
            vm: "edge".into(),
            operation: "migrate".into(),
            sub: "begin".into(),
            extra: "-".into(),
            xml: "hunter2".into(),
        };
        assert_eq!(format!("{request:?}"), "migrate begin of VM edge (-), 7 bytes of XML");
        let answer = HookAnswer { stdout: "hunter2".into(), ..answer() };
        assert!(!format!("{answer:?}").contains("hunter2"));
    }
}
