//! Who runs on which of the machine's cores. Real networks and hosts do not take the VM's processors away; here their
//! wires have a real-time priority, and a VM whose core they took for a moment does not move to one that is idle (the
//! wires' wake-ups keep the kernel from balancing): 23 of the first 150 ms after an arrival were lost to that.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The machine's cores, divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    vm: Vec<usize>,
    rest: Vec<usize>,
}

impl Cores {
    /// As many for the VM as it has CPUs, the last ones; the others for everything else. `None`: there are too few.
    #[must_use]
    pub fn divide(vcpus: u32) -> Option<Cores> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let usable = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        Cores::of(usable.collect(), vcpus as usize)
    }

    fn of(mut usable: Vec<usize>, vcpus: usize) -> Option<Cores> {
        let rest = usable.len().checked_sub(vcpus).filter(|rest| *rest > 0)?;
        let vm = usable.split_off(rest);
        Some(Cores { vm, rest: usable })
    }

    /// Keeps this process, and all that it starts from now on, away from the VM's.
    pub fn leave_to_vm(&self) {
        confine(&self.rest);
    }

    /// Undoes [`Cores::leave_to_vm`]; what was started in between stays where it is.
    pub fn share(&self) {
        confine(&[&self.rest[..], &self.vm].concat());
    }

    /// For libvirt, which would let the VM's threads run anywhere.
    pub(crate) fn xml(&self) -> String {
        let pins = (0..).zip(&self.vm).map(|(vcpu, core)| format!("<vcpupin vcpu='{vcpu}' cpuset='{core}'/>"));
        let rest = self.rest.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        format!("<cputune>{}<emulatorpin cpuset='{rest}'/></cputune>", pins.collect::<String>())
    }
}

fn confine(cores: &[usize]) {
    let mut set = CpuSet::new();
    if cores.iter().all(|core| set.set(*core).is_ok()) {
        let _ = sched_setaffinity(Pid::from_raw(0), &set); // without it the figures are worse, and nothing else
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vm_has_the_last_cores_where_there_are_enough() {
        let two = Cores::of(vec![0, 1], 1).unwrap();
        assert_eq!(two.xml(), "<cputune><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='0'/></cputune>");
        let four = Cores::of(vec![0, 2, 4, 6], 2).unwrap();
        assert_eq!((four.vm, four.rest), (vec![4, 6], vec![0, 2]));
        assert_eq!(Cores::of(vec![0], 1), None);
        assert_eq!(Cores::of(vec![0, 1], 2), None);
    }
}
