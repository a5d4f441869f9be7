//! The lab: namespaces, wires, two sites with a libvirt each, emulated VMs, and what measures them.
//!
//! Everything needs root and happens in namespaces of the lab's own; dropping the parts removes them, and so does the
//! death of the lab's process.

pub mod carry;
pub mod netns;
pub mod shell;
pub mod topology;
pub mod wire;

mod keeper;
mod tap;
