//! The lab: namespaces, wires, two sites with a libvirt each, emulated VMs, and what measures them.
//!
//! Everything needs root and happens in namespaces of the lab's own; dropping the parts removes them, and so does the
//! death of the lab's process.

pub mod accelerator;
pub mod bench;
pub mod capture;
pub mod carry;
pub mod channel_proxy;
pub mod connections;
pub mod container;
pub mod conversation;
pub mod cores;
pub mod crossing;
pub mod crowd;
pub mod demo;
pub mod disks;
pub mod distribution;
pub mod domain;
pub mod exec;
pub mod family;
pub mod faults;
pub mod guest;
pub mod host;
pub mod hypervisor;
pub mod image;
pub mod journeys;
pub mod lan;
pub mod logbook;
pub mod measure;
pub mod middlebox;
pub mod needs;
pub mod netns;
pub mod packages;
pub mod pki;
pub mod planning;
pub mod readiness;
pub mod report;
pub mod shell;
pub mod site;
pub mod snapshot;
pub mod stage;
pub mod streams;
pub mod topology;
pub mod traffic;
pub mod vsock_device;
pub mod wire;

mod cpio;
mod keeper;
mod tap;
