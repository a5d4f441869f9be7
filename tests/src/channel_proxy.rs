//! Stands between a host's service and a VM's virtio-serial port, and does to what passes what a bad channel would.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use lsm_protocol::{
    Hello,
    frame::{Decoder, Frame, Kind, Wire},
};

use crate::shell::{During as _, Result};

/// How late a slow channel hands on each piece.
const SLOW: Duration = Duration::from_millis(400);
/// How often those who carry look for orders.
const TICK: Duration = Duration::from_millis(20);

/// What it does to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    Pass,
    /// Nothing comes through, and nobody is told.
    Silent,
    Slow,
    /// Every connection ends; new ones pass.
    Reset,
    /// Its end.
    Over,
}

/// The protocol's versions that each side is to be heard to speak; `None`: those it speaks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Versions {
    pub of_guest: Option<&'static [u16]>,
    pub of_host: Option<&'static [u16]>,
}

/// Dropping it gives the port back.
#[derive(Debug)]
pub struct ChannelProxy {
    mode: Arc<AtomicU8>,
    port: PathBuf,
    real: PathBuf,
}

impl ChannelProxy {
    /// Takes the place of a port's socket. Whoever is connected already stays so.
    ///
    /// # Errors
    /// There is no such socket.
    pub fn before(port: &Path) -> Result<ChannelProxy> {
        ChannelProxy::between(port, Versions::default())
    }

    /// The same between programs of other versions.
    ///
    /// # Errors
    /// There is no such socket.
    pub fn between(port: &Path, versions: Versions) -> Result<ChannelProxy> {
        let real = port.with_extension("real");
        fs::rename(port, &real).during(|| format!("move {} aside", port.display()))?;
        let listener = UnixListener::bind(port).during(|| format!("listen at {}", port.display()))?;
        listener.set_nonblocking(true).during(|| "look for orders between two callers".into())?;
        let mode = Arc::new(AtomicU8::new(Mode::Pass as u8));
        let (orders, behind) = (mode.clone(), real.clone());
        thread::spawn(move || serve(&listener, &behind, &orders, versions));
        Ok(ChannelProxy { mode, port: port.to_owned(), real })
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
        if mode == Mode::Reset {
            thread::sleep(3 * TICK); // all who carry have seen it
            self.mode.store(Mode::Pass as u8, Ordering::Relaxed);
        }
    }
}

impl Drop for ChannelProxy {
    fn drop(&mut self) {
        self.mode.store(Mode::Over as u8, Ordering::Relaxed);
        // Gone with its VM, the port needs nothing.
        if self.real.exists() {
            let _ = fs::rename(&self.real, &self.port);
        } else {
            let _ = fs::remove_file(&self.port);
        }
    }
}

fn is(mode: &AtomicU8, one: Mode) -> bool {
    mode.load(Ordering::Relaxed) == one as u8
}

fn serve(listener: &UnixListener, real: &Path, mode: &Arc<AtomicU8>, versions: Versions) {
    while !is(mode, Mode::Over) {
        let Ok((host, _)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        let Ok(guest) = UnixStream::connect(real) else { continue };
        let Versions { of_guest, of_host } = versions;
        let ways = [(host.try_clone(), guest.try_clone(), of_host), (Ok(guest), Ok(host), of_guest)];
        for (from, to, versions) in ways {
            let (Ok(from), Ok(to)) = (from, to) else { continue };
            let mode = mode.clone();
            thread::spawn(move || carry(from, to, &mode, versions.map(Translator::new)));
        }
    }
}

/// Has a side speak other versions than it does: its Hello says so, and all else is as it was.
struct Translator {
    versions: &'static [u16],
    decoder: Decoder,
}

impl Translator {
    fn new(versions: &'static [u16]) -> Translator {
        Translator { versions, decoder: Decoder::new(Wire::Serial) }
    }

    fn translate(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.decoder.push(bytes);
        let mut translated = vec![0]; // whatever was in the port before is at its end
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => translated.extend(Wire::Serial.encode(&self.spoken(frame))),
                Ok(None) => return translated,
                Err(_) => {}
            }
        }
    }

    fn spoken(&self, frame: Frame) -> Frame {
        let hello = frame.open::<Hello>(Kind::Hello).ok();
        let spoken = hello.map(|hello| Hello { versions: self.versions.to_vec(), ..hello });
        spoken.and_then(|hello| Frame::new(Kind::Hello, frame.sequence, &hello).ok()).unwrap_or(frame)
    }
}

fn carry(mut from: UnixStream, mut to: UnixStream, mode: &AtomicU8, mut translator: Option<Translator>) {
    let _ = from.set_nonblocking(false);
    let _ = from.set_read_timeout(Some(TICK));
    let mut chunk = [0; 4096];
    while !is(mode, Mode::Reset) && !is(mode, Mode::Over) {
        if is(mode, Mode::Silent) {
            thread::sleep(TICK); // what waits is late, not lost
            continue;
        }
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => {
                if is(mode, Mode::Slow) {
                    thread::sleep(SLOW);
                }
                let bytes = match &mut translator {
                    Some(translator) => translator.translate(&chunk[..length]),
                    None => chunk[..length].to_vec(),
                };
                if to.write_all(&bytes).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}
