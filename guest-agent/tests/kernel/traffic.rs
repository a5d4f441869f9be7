//! Connections that know every byte: each end sends a counted pattern and checks what it gets.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

pub(crate) fn listen(at: SocketAddr, protocol: Protocol) -> Socket {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(protocol)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(64).unwrap();
    socket
}

pub(crate) fn connect(from: SocketAddr, to: SocketAddr, protocol: Protocol) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol)).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket
}

/// One end of a connection at work: it sends a little every 2 ms and reads all the time.
pub(crate) struct Talker {
    socket: TcpStream,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Talker {
    pub(crate) fn start(socket: Socket) -> Self {
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let (mut writer, mut reader) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
        let (stopped, counted) = (stop.clone(), received.clone());
        let write = thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let piece: Vec<u8> = (sent..sent + 200).map(pattern).collect();
                writer.write_all(&piece).unwrap();
                sent += 200;
                thread::sleep(Duration::from_millis(2));
            }
            writer.shutdown(Shutdown::Write).unwrap();
            sent
        });
        let read = thread::spawn(move || {
            let mut buffer = [0; 65536];
            let mut total = 0;
            loop {
                let length = reader.read(&mut buffer).unwrap();
                if length == 0 {
                    return total;
                }
                for byte in &buffer[..length] {
                    assert_eq!(*byte, pattern(total), "byte {total}");
                    total += 1;
                }
                counted.store(total, Ordering::Relaxed);
            }
        });
        Talker { socket, stop, received, threads: vec![write, read] }
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// After both ends were told to stop: the bytes sent and those received.
    pub(crate) fn finish(self) -> (u64, u64) {
        let mut totals =
            self.threads.into_iter().map(|thread| thread.join().expect("a wrong byte or a dead connection"));
        (totals.next().unwrap(), totals.next().unwrap())
    }
}

fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}
