//! In a VM: calls one of the VM's own vsock ports, as any program there can, says Hello, and prints how much it is told.
//! Arguments: the port, and the source port where it matters.

use std::{error::Error, os::fd::AsRawFd as _};

use lsm_protocol::{
    Hello,
    frame::{Kind, Wire},
};
use lsm_tests::conversation::framed;
use nix::{
    libc::{VMADDR_CID_ANY, VMADDR_CID_LOCAL},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, setsockopt, socket, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
    unistd::{read, write},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut ports = std::env::args().skip(1).map(|word| word.parse::<u32>());
    let to = ports.next().ok_or("which port?")??;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    if let Some(from) = ports.next() {
        bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, from?))?;
    }
    connect(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_LOCAL, to))?;
    // The other side may be gone already.
    let _ = write(&socket, &framed(Wire::Stream, Kind::Hello, &Hello::ours("lab-vsock")));
    let mut told = 0;
    let end = loop {
        match read(&socket, &mut [0; 4096]) {
            Ok(0) => break "closed".to_owned(),
            Ok(bytes) => told += bytes,
            Err(error) => break error.to_string(),
        }
    };
    println!("{told} bytes, then {end}");
    Ok(())
}
