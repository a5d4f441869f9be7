//! A site: one host with its own libvirtd, system bus and libvirt-dbus, in namespaces, without systemd.

use std::{
    fs,
    net::IpAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    keeper,
    pki::Authority,
    shell::{During as _, LabError, Process, Result, run, wait_for},
    topology::Topology,
};

/// Where all of a lab's sites keep their files. Removed when dropped, unless `LSM_KEEP` is set in the environment.
#[derive(Debug)]
pub struct LabDir {
    path: PathBuf,
    /// For what is in memory on a real host: libvirt syncs its state to disk in `/run` at each step of a migration, and
    /// a busy disk held up the word of a stop for 220 ms.
    memory: PathBuf,
}

impl LabDir {
    /// Makes it, below the system's directory for temporary files.
    ///
    /// # Errors
    /// The disk is full, or such.
    pub fn new(topology: &Topology) -> Result<LabDir> {
        let path = std::env::temp_dir().join(topology.prefix());
        let memory = Path::new("/dev/shm").join(topology.prefix());
        for dir in [&path, &memory] {
            fs::create_dir_all(dir).during(|| format!("make {}", dir.display()))?;
            if std::env::var_os("LSM_KEEP").is_none() {
                keeper::keep("dir", &dir.display().to_string());
            }
        }
        Ok(LabDir { path, memory })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        for dir in [&self.memory, &self.path] {
            if std::env::var_os("LSM_KEEP").is_none() && fs::remove_dir_all(dir).is_ok() {
                keeper::forget("dir", &dir.display().to_string());
            }
        }
    }
}

/// What libvirt's connections to other hosts are, and those of the QEMUs that it starts from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Plain,
    /// Multipath TCP, by `mptcpize`.
    Multipath,
}

/// What a site has beyond libvirt.
#[derive(Debug, Clone, Default)]
pub struct SiteOptions {
    /// A program installed as `/etc/libvirt/hooks/qemu.d/lsm`. It must be there when libvirtd starts.
    pub hook: Option<PathBuf>,
    /// Files of the site's own: absolute path inside the site, contents. `/etc/lsm/host.toml`, say.
    pub files: Vec<(PathBuf, String)>,
    /// Let VMs use KVM; see [`crate::accelerator::kvm_works`].
    pub kvm: bool,
}

/// A running site. Dropping it kills everything in it.
#[derive(Debug)]
pub struct Site {
    name: String,
    dir: PathBuf,
    init: Process,
    inner: u32,
}

impl Site {
    /// Starts the site `name` of the topology, and waits until libvirt answers and the bus has libvirt-dbus.
    ///
    /// # Errors
    /// A Debian package is missing (see `tests/install`), or a daemon did not start (its words are in the error).
    pub fn start(
        topology: &Topology,
        lab: &LabDir,
        name: &str,
        authority: &Authority,
        options: &SiteOptions,
    ) -> Result<Arc<Site>> {
        let plan = topology.site(name);
        let dir = lab.path().join(name);
        let hosts: String = topology.sites().iter().map(|site| format!("{} {}\n", site.wan, site.name)).collect();
        let run = lab.memory.join(name);
        for path in [&dir, &run] {
            fs::create_dir_all(path).during(|| format!("make {}", path.display()))?;
        }
        std::os::unix::fs::symlink(&run, dir.join("run")).during(|| format!("link to {}", run.display()))?;
        for private in [
            "etc/libvirt/hooks/qemu.d",
            "etc/lsm",
            "etc/pki",
            "machine-etc",
            "dev",
            "run/dbus",
            "run/lsm",
            "run/lsm-metrics",
            "run/lock",
            "var/lib/libvirt",
            "var/cache/libvirt",
            "var/log/libvirt/qemu",
        ] {
            let path = dir.join(private);
            fs::create_dir_all(&path).during(|| format!("make {}", path.display()))?;
        }
        write(&dir, "etc/hosts", &format!("127.0.0.1 localhost\n{hosts}"))?;
        write(&dir, "etc/hostname", &format!("{name}\n"))?;
        write(&dir, "etc/lab-bus.conf", BUS)?;
        write(&dir, "etc/libvirt/libvirtd.conf", &libvirtd_conf(plan.number, plan.wan))?;
        write(&dir, "etc/libvirt/qemu.conf", &qemu_conf(name, plan.wan))?;
        authority.equip(&dir.join("etc/pki"), name, plan.wan)?;
        if options.kvm {
            write(&dir, "use-kvm", "")?;
        }
        for (path, text) in &options.files {
            write(&dir, &path.display().to_string(), text)?;
        }
        if let Some(hook) = &options.hook {
            let installed = dir.join("etc/libvirt/hooks/qemu.d/lsm");
            fs::copy(hook, &installed).during(|| format!("copy {} to {}", hook.display(), installed.display()))?;
            executable(&installed)?;
        }
        copy_new(&known_capabilities(), &dir.join(CAPABILITIES));
        write(&dir, "init", include_str!("site-init.sh"))?;
        executable(&dir.join("init"))?;

        let log = dir.join("log");
        let output = fs::File::create(&log).during(|| format!("make {}", log.display()))?;
        let errors = output.try_clone().during(|| "share the site's log".into())?;
        let mut command = topology.ns(name).command("unshare");
        command.args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--"]);
        command.arg(dir.join("init")).arg(&dir).arg(name).stdout(output).stderr(errors);
        let init = Process::start(&format!("site {name}"), &mut command)?;
        let inner = wait_for("the site's first process", Duration::from_secs(5), || {
            (init.inner_pid() != init.pid()).then(|| init.inner_pid())
        })?;
        let mut site = Site { name: name.into(), dir, init, inner };
        let ready = wait_for("libvirtd and libvirt-dbus", Duration::from_secs(20), || {
            (!site.init.is_running() || site.answers()).then_some(())
        });
        if ready.is_err() || !site.init.is_running() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(LabError::Other(format!("the site {name} did not start: {said}")));
        }
        Ok(Arc::new(site))
    }

    /// One that is a machine of its own: `init` waits for its first process, `inner`.
    pub(crate) fn of(name: &str, dir: &Path, init: Process, inner: u32) -> Site {
        Site { name: name.into(), dir: dir.to_owned(), init, inner }
    }

    fn answers(&self) -> bool {
        UnixStream::connect(self.inside("/run/libvirt/libvirt-sock")).is_ok()
            && UnixStream::connect(self.inside("/run/dbus/system_bus_socket")).is_ok()
    }

    /// Its name, which is also its host name and its LAN's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory on the machine. `etc`, `run`, `var/log/libvirt`, `var/lib/libvirt` and `var/cache/libvirt` below
    /// it are the site's own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// An absolute path of the site as the lab can open it. Good for Unix sockets too: it is short.
    #[must_use]
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.inner))
    }

    /// A command that runs inside the site. The started child is `nsenter`, which waits for the program; when it is
    /// killed, the program is too. [`Process::inner_pid`] is the program.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inner.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command
    }

    /// Starts a long-running program inside the site. What it prints goes to `NAME.log` in the site's directory,
    /// after what was there.
    ///
    /// # Errors
    /// It could not be started.
    pub fn service(&self, name: &str, command: &mut Command) -> Result<Process> {
        let log = self.dir.join(format!("{name}.log"));
        let output = fs::OpenOptions::new().create(true).append(true).open(&log);
        let output = output.during(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().during(|| "share the log".into())?;
        Process::start(&format!("{name} in {}", self.name), command.stdout(output).stderr(errors))
    }

    /// Runs `virsh` inside the site and returns what it printed.
    ///
    /// # Errors
    /// What virsh complained of.
    pub fn virsh<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<String> {
        run(self.command("virsh").args(["--quiet", "--connect", "qemu:///system"]).args(arguments))
    }

    /// The host loses its power: all of it is dead at once, and stays so.
    ///
    /// # Errors
    /// It was dead already.
    pub fn die(&self) -> Result<()> {
        kill(Pid::from_raw(self.inner.cast_signed()), Signal::SIGKILL).during(|| format!("kill the site {}", self.name))
    }

    /// Ends libvirtd with SIGKILL and starts it again, as after a crash. VMs run on.
    ///
    /// # Errors
    /// It did not come back.
    pub fn restart_libvirtd(&self, transport: Transport) -> Result<()> {
        let mut again = match transport {
            Transport::Plain => self.command("libvirtd"),
            Transport::Multipath => {
                let mut libvirtd = self.command("mptcpize");
                libvirtd.args(["run", "libvirtd"]);
                libvirtd
            }
        };
        let pid = fs::read_to_string(self.dir.join("run/libvirtd.pid")).during(|| "read libvirtd's pid file".into())?;
        run(self.command("bash").args(["-c", &format!("kill -KILL {}", pid.trim())]))?;
        let _ = fs::remove_file(self.dir.join("run/libvirt/libvirt-sock"));
        again.args(["--listen", "--daemon", "--config", "/etc/libvirt/libvirtd.conf"]);
        run(again.args(["--pid-file", "/run/libvirtd.pid"]).stdout(Stdio::null()))?;
        wait_for("libvirtd", Duration::from_secs(20), || self.answers().then_some(()))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        copy_new(&self.dir.join(CAPABILITIES), &known_capabilities());
    }
}

/// What libvirt has learned of QEMU, in a site's directory. Learning takes more than a second.
const CAPABILITIES: &str = "var/cache/libvirt/qemu/capabilities";

/// The same, kept from lab to lab; libvirt sees by itself when it is out of date.
fn known_capabilities() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cache/capabilities")
}

/// Copies the files that are newer or missing there. Only saves time: errors do not matter.
fn copy_new(from: &Path, to: &Path) {
    let _ = run(Command::new("mkdir").arg("-p").arg(to));
    let _ = run(Command::new("cp")
        .args(["--update", "--preserve=timestamps", "--recursive", "--no-target-directory"])
        .arg(from)
        .arg(to));
}

fn write(dir: &Path, path: &str, text: &str) -> Result<()> {
    let path = dir.join(path.trim_start_matches('/'));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).during(|| format!("make {}", parent.display()))?;
    }
    fs::write(&path, text).during(|| format!("write {}", path.display()))
}

fn executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .during(|| format!("make {} executable", path.display()))
}

/// Everybody in the site is root.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"#;

fn libvirtd_conf(number: u8, wan: IpAddr) -> String {
    // Two libvirts with the same host_uuid refuse to migrate to each other.
    format!(
        r#"host_uuid = "4c534d00-0000-4000-8000-0000000000{number:02x}"
listen_tls = 0
listen_tcp = 1
listen_addr = "{wan}"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
"#
    )
}

fn qemu_conf(name: &str, wan: IpAddr) -> String {
    // stdio_handler: without virtlogd. cgroups and security drivers: not the lab's matter.
    format!(
        r#"user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
migration_address = "{wan}"
migration_host = "{name}"
"#
    )
}
