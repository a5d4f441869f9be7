// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The BPF program that makes sockets MPTCP. It runs within socket(2), in the kernel's update_socket_protocol
//! (net/socket.c, Linux 6.6 and later): 0 leaves the protocol that was asked for, anything else takes its place.
//!
//! A unit is known by its cgroup's name, not its number: systemd makes a new cgroup at each start of a unit, and the
//! program that starts in it asks for sockets before anybody could tell the kernel the new number.

use nix::libc;

use super::btf::{Btf, Error};

/// The kernel lends the functions that read its memory to programs under the GPL only; this file may be used under it.
pub(super) const LICENSE: &std::ffi::CStr = c"GPL";

/// Of a unit's name, in bytes: the kernel's limit for a cgroup's (NAME_MAX).
pub const LONGEST_UNIT: usize = 255;

/// Whose sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Of everybody but these units.
    AllBut(&'a [Unit<'a>]),
    /// Of these units.
    Only(&'a [Unit<'a>]),
}

/// A unit of systemd's, by its cgroup's name, or any whose name begins so; no longer than [`LONGEST_UNIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit<'a> {
    Named(&'a str),
    Beginning(&'a str),
}

/// Where the kernel keeps the names of a process's cgroup and of those above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    task_cgroups: i32,
    set_cgroup: i32,
    cgroup_level: i32,
    cgroup_ancestors: i32,
    cgroup_node: i32,
    node_name: i32,
}

impl Layout {
    pub(super) fn of(kernel: &Btf) -> Result<Layout, Error> {
        Ok(Layout {
            task_cgroups: kernel.offset("task_struct", "cgroups")?,
            set_cgroup: kernel.offset("css_set", "dfl_cgrp")?,
            cgroup_level: kernel.offset("cgroup", "level")?,
            cgroup_ancestors: kernel.offset("cgroup", "ancestors")?,
            cgroup_node: kernel.offset("cgroup", "kn")?,
            node_name: kernel.offset("kernfs_node", "name")?,
        })
    }
}

/// Cgroups further from the root are not looked at; a unit of a user's service manager in a container has level 8.
const DEEPEST: i32 = 12;

// On the stack, below the frame pointer.
const POINTER: i16 = -8;
const NAME: i16 = POINTER - NAME_LEN as i16;
/// A cgroup's name with its end.
const NAME_LEN: i32 = LONGEST_UNIT as i32 + 1;

// linux/bpf.h, enum bpf_func_id.
const GET_CURRENT_TASK: i32 = 35;
const PROBE_READ_KERNEL: i32 = 113;
const PROBE_READ_KERNEL_STR: i32 = 115;

/// The program's instructions, each eight bytes.
pub(super) fn program(whose: Whose, layout: &Layout) -> Vec<u64> {
    let mut code = Code::default();
    let (mptcp, leave) = (code.label(), code.label());
    // r1: {family, type, protocol, return value of a program before this one}, 8 bytes each.
    // They are ints: only the lower half counts, in comparisons too.
    code.push(LOAD64, R2, R1, 0, 0);
    let internet = code.label();
    code.jump_if(JEQ32, R2, libc::AF_INET, internet);
    code.jump_if(JNE32, R2, libc::AF_INET6, leave);
    code.place(internet);
    code.push(LOAD64, R2, R1, 8, 0);
    // SOCK_CLOEXEC and SOCK_NONBLOCK are still in it.
    code.push(AND32_K, R2, 0, 0, SOCK_TYPE_MASK);
    code.jump_if(JNE32, R2, libc::SOCK_STREAM, leave);
    code.push(LOAD64, R2, R1, 16, 0);
    let tcp = code.label();
    code.jump_if(JEQ32, R2, 0, tcp);
    code.jump_if(JNE32, R2, libc::IPPROTO_TCP, leave);
    code.place(tcp);
    match whose {
        Whose::AllBut([]) => {}
        Whose::AllBut(units) => code.jump_if_unit(units, layout, leave),
        Whose::Only(units) => {
            code.jump_if_unit(units, layout, mptcp);
            code.jump(leave);
        }
    }
    code.place(mptcp);
    code.push(MOV_K, R0, 0, 0, libc::IPPROTO_MPTCP);
    code.push(EXIT, 0, 0, 0, 0);
    code.place(leave);
    code.push(MOV_K, R0, 0, 0, 0);
    code.push(EXIT, 0, 0, 0, 0);
    code.finish()
}

const SOCK_TYPE_MASK: i32 = 0xf;

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
/// Kept over calls.
const CGROUP: u8 = 6;
const LEVEL: u8 = 7;
const WALK: u8 = 8;
const FRAME: u8 = 10;

// Documentation/bpf/standardization/instruction-set.rst.
const LOAD32: u8 = 0x61;
const LOAD64: u8 = 0x79;
const LOAD_K64: u8 = 0x18;
const MOV_K: u8 = 0xb7;
const MOV: u8 = 0xbf;
const ADD_K: u8 = 0x07;
const ADD: u8 = 0x0f;
const AND32_K: u8 = 0x54;
const AND: u8 = 0x5f;
const SHIFT_LEFT_K: u8 = 0x67;
const JA: u8 = 0x05;
const JEQ32: u8 = 0x16;
const JNE32: u8 = 0x56;
const JNE_R: u8 = 0x5d;
const JGT_R: u8 = 0x2d;
const JLE: u8 = 0xb5;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

#[derive(Default)]
struct Code {
    instructions: Vec<(u8, u8, u8, i16, i32)>,
    /// Where each label is.
    labels: Vec<usize>,
    /// Which instructions jump to which label.
    jumps: Vec<(usize, Label)>,
}

#[derive(Clone, Copy)]
struct Label(usize);

impl Code {
    fn push(&mut self, operation: u8, to: u8, from: u8, offset: i16, value: i32) {
        self.instructions.push((operation, to, from, offset, value));
    }

    fn load_k64(&mut self, to: u8, value: u64) {
        self.push(LOAD_K64, to, 0, 0, value as i32);
        self.push(0, 0, 0, 0, (value >> 32) as i32);
    }

    fn label(&mut self) -> Label {
        self.labels.push(usize::MAX);
        Label(self.labels.len() - 1)
    }

    fn place(&mut self, label: Label) {
        self.labels[label.0] = self.instructions.len();
    }

    fn jump(&mut self, to: Label) {
        self.jump_if(JA, 0, 0, to);
    }

    fn jump_if(&mut self, operation: u8, register: u8, value: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(operation, register, 0, 0, value);
    }

    fn jump_if_registers(&mut self, operation: u8, left: u8, right: u8, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(operation, left, right, 0, 0);
    }

    /// Reads `length` bytes of the kernel at r3 to the stack.
    fn read_kernel(&mut self, function: i32, to: i16, length: i32) {
        self.push(MOV, R1, FRAME, 0, 0);
        self.push(ADD_K, R1, 0, 0, i32::from(to));
        self.push(MOV_K, R2, 0, 0, length);
        self.push(CALL, 0, 0, 0, function);
    }

    /// Register = *(register + offset), in the kernel's memory. What cannot be read is 0, and reading from there fails
    /// too.
    fn follow(&mut self, register: u8, offset: i32) {
        self.push(MOV, R3, register, 0, 0);
        self.push(ADD_K, R3, 0, 0, offset);
        self.read_kernel(PROBE_READ_KERNEL, POINTER, 8);
        self.push(LOAD64, register, FRAME, POINTER, 0);
    }

    /// Jumps when the calling process is in the cgroup of one of these units, or below it. Goes down from the root: level
    /// 1 is a slice, services come after it.
    fn jump_if_unit(&mut self, units: &[Unit], layout: &Layout, to: Label) {
        let (again, done) = (self.label(), self.label());
        self.push(CALL, 0, 0, 0, GET_CURRENT_TASK);
        self.push(MOV, CGROUP, R0, 0, 0);
        self.follow(CGROUP, layout.task_cgroups);
        self.follow(CGROUP, layout.set_cgroup);
        self.push(MOV_K, LEVEL, 0, 0, 1);
        self.place(again);
        self.push(MOV, R3, CGROUP, 0, 0);
        self.push(ADD_K, R3, 0, 0, layout.cgroup_level);
        self.read_kernel(PROBE_READ_KERNEL, POINTER, 4);
        self.push(LOAD32, R1, FRAME, POINTER, 0);
        self.jump_if_registers(JGT_R, LEVEL, R1, done);
        self.push(MOV, WALK, LEVEL, 0, 0);
        self.push(SHIFT_LEFT_K, WALK, 0, 0, 3);
        self.push(ADD, WALK, CGROUP, 0, 0);
        self.follow(WALK, layout.cgroup_ancestors);
        self.follow(WALK, layout.cgroup_node);
        self.follow(WALK, layout.node_name);
        self.push(MOV, R3, WALK, 0, 0);
        self.read_kernel(PROBE_READ_KERNEL_STR, NAME, NAME_LEN);
        for unit in units {
            self.jump_if_name(*unit, to);
        }
        self.push(ADD_K, LEVEL, 0, 0, 1);
        self.jump_if(JLE, LEVEL, DEEPEST, again);
        self.place(done);
    }

    /// Compares eight bytes at a time, the end of a whole name included; what is behind it on the stack is masked away.
    fn jump_if_name(&mut self, unit: Unit, to: Label) {
        let other = self.label();
        let bytes = match unit {
            Unit::Named(name) => [name.as_bytes(), &[0]].concat(),
            Unit::Beginning(name) => name.as_bytes().to_vec(),
        };
        for (at, chunk) in bytes.chunks(8).enumerate() {
            let padded = |fill: u8| {
                let mut word = [0; 8];
                for (i, byte) in chunk.iter().enumerate() {
                    word[i] = byte | fill;
                }
                u64::from_ne_bytes(word)
            };
            self.push(LOAD64, R1, FRAME, NAME + 8 * at as i16, 0);
            if chunk.len() < 8 {
                self.load_k64(R2, padded(0xff));
                self.push(AND, R1, R2, 0, 0);
            }
            self.load_k64(R2, padded(0));
            self.jump_if_registers(JNE_R, R1, R2, other);
        }
        self.jump(to);
        self.place(other);
    }

    fn finish(mut self) -> Vec<u64> {
        for (at, label) in self.jumps {
            // Distances count from the next instruction. The longest list of units that may be configured is far from what
            // 16 bits hold.
            self.instructions[at].3 = (self.labels[label.0] as i64 - at as i64 - 1) as i16;
        }
        let encode = |(operation, to, from, offset, value): (u8, u8, u8, i16, i32)| {
            // struct bpf_insn has the registers as bit fields, which follow the byte order.
            let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
            let ([o1, o2], [v1, v2, v3, v4]) = (offset.to_ne_bytes(), value.to_ne_bytes());
            u64::from_ne_bytes([operation, registers, o1, o2, v1, v2, v3, v4])
        };
        self.instructions.into_iter().map(encode).collect()
    }
}
