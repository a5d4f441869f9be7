#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lsm_guest::hostile::neighbours(bytes));
