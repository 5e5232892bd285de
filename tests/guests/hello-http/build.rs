//! Gives the linker a small stack: the function needs none to speak of, and each page of memory that an instance has
//! at its start is a page that a fresh instance may have to pay for.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-cdylib=-zstack-size=8192");
}
