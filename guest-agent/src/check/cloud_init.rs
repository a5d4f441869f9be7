//! cloud-init, where an image has it: it writes what others then do with a VM's network cards, at the first boot or, as its
//! data source has it, at every boot and for each card that is plugged in. Read from its own files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lsm_protocol::finding::Finding;

const WHAT: &str = "cloud-init";
/// The package's example, packaging/guest/cloud-init.cfg, in one line.
const ONCE: &str = "printf 'updates: {network: {when: [boot-new-instance]}}\\n' >/etc/cloud/cloud.cfg.d/90-lsm.cfg";
const NEVER: &str = "printf 'network: {config: disabled}\\n' >/etc/cloud/cloud.cfg.d/90-lsm.cfg";
/// Where it renders a network's configuration, for whoever reads it (cloudinit/net/*.py, 23.1).
const RENDERED: [&str; 6] = [
    "etc/netplan",
    "etc/network/interfaces.d",
    "etc/systemd/network",
    "run/systemd/network",
    "etc/NetworkManager/system-connections",
    "etc/sysconfig/network-scripts",
];
/// What may stand behind `when`.
const OCCASIONS: [&str; 4] = ["boot-new-instance", "boot-legacy", "boot", "hotplug"];

/// Looks at the system below `root`. Of the cards, the spares: name and MAC.
pub(super) fn cloud_init(root: &Path, spares: &[(&str, &str)]) -> Option<Finding> {
    let installed = ["usr/bin/cloud-init", "etc/cloud/cloud.cfg"].into_iter().any(|path| root.join(path).exists());
    if !installed || root.join("etc/cloud/cloud-init.disabled").exists() {
        return None;
    }
    let texts: Vec<String> = configuration(root);
    let configured = rendered(root).into_iter().find_map(|(file, text)| {
        let names = |(name, mac): &&(&str, &str)| has_word(&text, name) || has_word(&text.to_lowercase(), mac);
        spares.iter().find(names).map(|(name, _)| (*name, file))
    });
    Some(if let Some((name, file)) = configured {
        let found = format!(
            "{name} is spare, and cloud-init has it configured by /{}: somebody asks for addresses where there is no LAN",
            file.display()
        );
        Finding::warning(WHAT, found, format!("{NEVER} && editor /{}  # take {name} out of it", file.display()))
    } else if texts.iter().any(|text| squeezed(text).contains("network:config:disabled")) {
        Finding::good(WHAT, "configures no network")
    } else if texts.iter().rev().find_map(|text| occasions(text)).is_some_and(|all| all == [OCCASIONS[0]]) {
        Finding::good(WHAT, "configures the network at an instance's first boot, and not again")
    } else {
        let found = "it may configure network cards at any boot, or as one is plugged in, a spare one too";
        Finding::warning(WHAT, found, ONCE)
    })
}

/// Without comments, those that count more behind the others.
fn configuration(root: &Path) -> Vec<String> {
    let mut files = files(&root.join("etc/cloud/cloud.cfg.d"));
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cfg"));
    files.insert(0, root.join("etc/cloud/cloud.cfg"));
    let uncommented = |text: String| {
        text.lines().map(|line| line.split_once('#').map_or(line, |(before, _)| before)).collect::<Vec<_>>().join("\n")
    };
    files.into_iter().filter_map(|file| fs::read_to_string(file).ok()).map(uncommented).collect()
}

/// Files that cloud-init wrote, by their name or by what they say of themselves; below the root.
fn rendered(root: &Path) -> Vec<(PathBuf, String)> {
    let all = RENDERED.into_iter().flat_map(|directory| files(&root.join(directory)));
    let by_it = all.filter_map(|file| {
        let text = fs::read_to_string(&file).ok()?;
        let named = file.file_name()?.to_string_lossy().contains(WHAT);
        (named || text.to_lowercase().contains(WHAT)).then_some((file.strip_prefix(root).ok()?.to_owned(), text))
    });
    by_it.collect()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// YAML of either style without what the styles differ by.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && !"{}\"'".contains(*c)).collect()
}

/// When the network is to be configured, where a file says so.
fn occasions(text: &str) -> Option<Vec<&str>> {
    if !squeezed(text).contains("updates:network:when:") {
        return None;
    }
    let list = text.split_once("when")?.1;
    let words =
        list.split(|c: char| c.is_whitespace() || ":[],{}\"'".contains(c)).filter(|word| !matches!(*word, "" | "-"));
    Some(words.take_while(|word| OCCASIONS.contains(word)).collect())
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == ':' || c == '.' || c == '-'))
        .any(|found| found.trim_matches([':', '-', '.']) == word)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use lsm_protocol::finding::Verdict;

    use super::*;

    /// As it is shipped.
    const SHIPPED: &str = include_str!("../../../packaging/guest/cloud-init.cfg");
    const SPARE: [(&str, &str); 1] = [("eth1", "52:54:00:aa:00:02")];

    #[test]
    fn one_that_would_configure_a_spare_is_named_with_its_cure() {
        let root = std::env::temp_dir().join(format!("lsm-cloud-init-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        let look = || cloud_init(&root, &SPARE);
        let verdict = || look().map(|finding| finding.verdict);
        assert_eq!(verdict(), None, "there is none");
        write("etc/cloud/cloud.cfg", "# network: {config: disabled}\nusers: [default]\n");
        assert_eq!(verdict(), Some(Verdict::Warning));
        assert!(look().unwrap().fix.unwrap().ends_with("/etc/cloud/cloud.cfg.d/90-lsm.cfg"));

        write("etc/cloud/cloud.cfg.d/90-lsm.cfg", SHIPPED);
        assert_eq!(verdict(), Some(Verdict::Good));
        for (text, expected) in [
            ("updates:\n  network:\n    when:\n      - boot-new-instance\n", Verdict::Good),
            ("updates:\n  network:\n    when:\n      - boot-new-instance\n      - hotplug\n", Verdict::Warning),
            ("updates: {network: {when: [boot]}}\n", Verdict::Warning),
            ("network:\n  config: disabled\n", Verdict::Good),
            ("network: {config: disabled}", Verdict::Good),
            ("network: {version: 2}", Verdict::Warning),
        ] {
            write("etc/cloud/cloud.cfg.d/90-lsm.cfg", text);
            assert_eq!(verdict(), Some(expected), "{text}");
        }
        write("etc/cloud/cloud.cfg.d/90-lsm.cfg", SHIPPED);

        write("etc/netplan/50-cloud-init.yaml", "network:\n  ethernets:\n    eth0: {dhcp4: true}\n    eth10: {}\n");
        assert_eq!(verdict(), Some(Verdict::Good), "not of the spare");
        write("etc/netplan/60-mine.yaml", "network:\n  ethernets:\n    eth1: {dhcp4: true}\n");
        assert_eq!(verdict(), Some(Verdict::Good), "not by cloud-init");
        write("etc/netplan/50-cloud-init.yaml", "network:\n  ethernets:\n    eth1: {dhcp4: true}\n");
        let found = look().unwrap();
        assert!(found.found.starts_with("eth1 is spare") && found.found.contains("/etc/netplan/50-cloud-init.yaml"));
        assert!(found.fix.unwrap().contains("config: disabled"));
        write("etc/netplan/50-cloud-init.yaml", "  any:\n    match: {macaddress: \"52:54:00:AA:00:02\"}\n");
        assert_eq!(verdict(), Some(Verdict::Warning), "by its MAC");

        write("etc/cloud/cloud-init.disabled", "");
        assert_eq!(verdict(), None, "it does nothing at all");
        fs::remove_dir_all(&root).unwrap();
    }
}
