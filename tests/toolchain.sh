# Sourced by tests/all and tests/demo: finds cargo where sudo hides it, and leaves nothing of root's in a user's files.
# shellcheck shell=bash

me=${0#"$PWD"/}
say() { echo "$me: $*" >&2; }
die() { say "$*"; exit 1; }

# Whose checkout and toolchain it is: the user who typed sudo, or whoever runs this.
builder=$(id -un)
if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER-}" ] && [ "$SUDO_USER" != root ]; then
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    if [ -x "$home/.cargo/bin/cargo" ]; then
        builder=$SUDO_USER
        export CARGO_HOME=${CARGO_HOME:-$home/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
    fi
fi
PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

# The same command as that user: what it downloads and builds is the user's.
as_builder() {
    if [ "$builder" = "$(id -un)" ]; then
        "$@"
    else
        runuser -u "$builder" -- env HOME="$home" "$@"
    fi
}

need_cargo() {
    command -v cargo >/dev/null || die "no cargo in $PATH; install Rust 1.89 or later (https://rustup.rs) for $builder"
}

# What the agent of the packages is compiled for: agent_target MACHINE. With musl, where Rust has it for that machine
# ("rustup target add"): glibc, linked statically, brings locales and a resolver along, a sixth of the program.
agent_target() {
    local musl=$1-unknown-linux-musl
    if [ -d "$(rustc --print target-libdir --target "$musl")" ]; then
        echo "$musl"
    else
        echo "$1-unknown-linux-gnu"
    fi
}

# What tests and demo build once more when they run, in the very same way (tests/src/image.rs, static_program): built
# here, it is built by the right user and not in silence. Each alone, as there: together they would share features.
build_static() {
    local target=x86_64-unknown-linux-gnu package
    for package in "lsm-hook --bin lsm-hook" "lsm-guest --bin lsm-guest" "lsm-tests"; do
        # shellcheck disable=SC2086 # a package and its options
        as_builder env -u CARGO_ENCODED_RUSTFLAGS RUSTFLAGS='-C target-feature=+crt-static' \
            cargo build --profile lab --target "$target" --package $package
    done
}
