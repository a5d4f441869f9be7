//! bpf(2), which has no safe interface elsewhere. The one file of this crate with unsafe code.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use nix::libc;

// linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_MODIFY_RETURN: u32 = 26;

/// Loads a program that may change what the kernel's function with this number returns (fmod_ret).
///
/// # Errors
/// The kernel's, and the verifier's last words where it has any.
pub(crate) fn load(name: &CStr, license: &CStr, code: &[u64], function: u32) -> Result<OwnedFd, (io::Error, String)> {
    /// The first fields of the union's member for BPF_PROG_LOAD; what is missing at the end counts as zero.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
        btf: u32,
        function_info_size: u32,
        function_info: u64,
        functions: u32,
        line_info_size: u32,
        line_info: u64,
        lines: u32,
        function: u32,
    }
    let mut load = Load {
        kind: BPF_PROG_TYPE_TRACING,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type: BPF_MODIFY_RETURN,
        function,
        ..Load::default()
    };
    for (to, from) in load.name.iter_mut().zip(name.to_bytes().iter().take(15)) {
        *to = *from;
    }
    // SAFETY: `code` and `license` are alive and as long as said (a C string ends by itself); the kernel only reads them.
    #[expect(unsafe_code, reason = "see bpf")]
    match unsafe { bpf(BPF_PROG_LOAD, &load) } {
        Ok(program) => return Ok(program),
        // The verifier's log is asked for only then: one that is too small would itself be an error.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err((error, String::new())),
        Err(_) => {}
    }
    let mut log = vec![0u8; 1 << 20];
    load.log_level = 1;
    load.log_size = log.len() as u32;
    load.log = log.as_mut_ptr() as u64;
    // SAFETY: as above; `log` is alive, ours alone, and as long as said.
    #[expect(unsafe_code, reason = "see bpf")]
    let loaded = unsafe { bpf(BPF_PROG_LOAD, &load) };
    loaded.map_err(|error| {
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.trim_end_matches('\0').lines().rev().take(3).collect();
        (error, lines.into_iter().rev().collect::<Vec<_>>().join("; "))
    })
}

/// Sets a loaded program to work, until the link is closed everywhere.
pub(crate) fn attach(program: &OwnedFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    let program = program.as_raw_fd() as u32;
    // SAFETY: no pointers.
    #[expect(unsafe_code, reason = "see bpf")]
    unsafe {
        bpf(BPF_LINK_CREATE, &Create { program, target: 0, attach_type: BPF_MODIFY_RETURN, flags: 0 })
    }
}

/// Gives a link a name in a BPF file system, which holds it from then on.
pub(crate) fn pin(link: &OwnedFd, path: &CStr) -> io::Result<()> {
    #[repr(C)]
    struct Pin {
        path: u64,
        object: u32,
        flags: u32,
    }
    let pin = Pin { path: path.as_ptr() as u64, object: link.as_fd().as_raw_fd() as u32, flags: 0 };
    // SAFETY: `path` is alive and ends by itself; the kernel only reads it.
    #[expect(unsafe_code, reason = "see bpf")]
    let pinned = unsafe { plain(BPF_OBJ_PIN, &pin) };
    pinned.map(drop)
}

/// For the commands that give a descriptor.
///
/// # Safety
/// As [`plain`].
#[expect(unsafe_code, reason = "bpf(2) takes pointers as numbers, and neither std nor nix has it")]
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let descriptor = unsafe { plain(command, attributes) }?;
    // SAFETY: the kernel has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
/// `T` is the beginning of `union bpf_attr` as `command` has it, and what its numbers point to is alive, and writable where
/// the kernel writes.
#[expect(unsafe_code, reason = "bpf(2) takes pointers as numbers, and neither std nor nix has it")]
unsafe fn plain<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the caller's; `attributes` itself is alive and has that length.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
