//! Links Intel's `crypto_mb` where the feature `batch` asks for it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={FOLDER}");
    if std::env::var_os("CARGO_FEATURE_BATCH").is_none() {
        return;
    }
    let target = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    assert!(target == "x86_64", "the feature `batch` is for x86_64, and this build is for {target}: build without it");
    let folder = std::env::var(FOLDER).unwrap_or_default();
    let archive = std::path::Path::new(&folder).join("libcrypto_mb.a");
    assert!(
        archive.is_file(),
        "the feature `batch` needs the folder of libcrypto_mb.a in {FOLDER} (now {folder:?}): `deploy/crypto-mb` fetches it"
    );
    println!("cargo:rerun-if-changed={}", archive.display());
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=static=crypto_mb");
}

const FOLDER: &str = "SEALPROXY_CRYPTO_MB";
