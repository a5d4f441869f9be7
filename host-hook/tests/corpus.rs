//! What the fuzzer starts from, and whatever it has found that once broke something: given to each decoder again.

use std::path::Path;

use lsm_hook::hostile;

#[test]
fn no_bytes_of_the_corpus_do_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    for (target, decode) in [
        ("domain", hostile::domain as fn(&[u8])),
        ("host_toml", hostile::configuration),
        ("hook_call", hostile::hook_call),
        ("virsh", hostile::virsh),
        ("trial", hostile::trial),
    ] {
        let mut replayed = 0;
        for file in std::fs::read_dir(corpus.join(target)).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            // And cut anywhere.
            (0..bytes.len()).step_by(1 + bytes.len() / 100).for_each(|length| decode(&bytes[..length]));
            decode(&bytes);
            replayed += 1;
        }
        assert!(replayed > 0, "no corpus for {target}");
        println!("{target}: {replayed} inputs, each cut in up to 100 places");
    }
}
