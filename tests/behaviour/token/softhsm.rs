//! A token of SoftHSM2 and the ways to it: the module itself, and one in front of it that makes it slow or poor.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::cli::{Started, checked, ended, start};
use crate::outside::present;
use crate::support::{file_config, folder, kit};

const PIN: &str = "1234";

/// A token, with the kit's two keys on it: `qseal` and `qwac`.
pub(crate) struct SoftHsm {
    pub(crate) folder: PathBuf,
    pub(crate) module: PathBuf,
}

impl SoftHsm {
    /// `None` where SoftHSM2 is not installed.
    pub(crate) fn new() -> Option<Self> {
        if !present(&["softhsm2-util"]) {
            return None;
        }
        let modules = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"];
        let module = modules.iter().map(PathBuf::from).find(|module| module.exists()).expect("SoftHSM2's module");
        let folder = folder("softhsm");
        std::fs::create_dir_all(folder.join("tokens")).expect("a folder");
        let conf = format!("directories.tokendir = {}\nobjectstore.backend = file\n", folder.join("tokens").display());
        std::fs::write(folder.join("softhsm2.conf"), conf).expect("a file");
        std::fs::write(folder.join("pin"), format!("{PIN}\n")).expect("a file");
        // As PINs are kept: one that every user may read is pointed out.
        std::fs::set_permissions(folder.join("pin"), std::fs::Permissions::from_mode(0o600)).expect("a file");
        let token = Self { folder, module };
        token.util(&["--init-token", "--free", "--label", "seals", "--pin", PIN, "--so-pin", "12345678"]);
        token.import(&kit().path("qsealc.key"), "qseal", "01");
        token.import(&kit().path("qwac.key"), "qwac", "10");
        Some(token)
    }

    fn util(&self, arguments: &[&str]) {
        let done = Command::new("softhsm2-util").args(arguments).env("SOFTHSM2_CONF", self.conf()).output();
        let done = done.expect("it starts");
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    pub(crate) fn import(&self, key: &Path, label: &str, id: &str) {
        let key = key.to_str().expect("UTF-8");
        self.util(&["--import", key, "--token", "seals", "--label", label, "--id", id, "--pin", PIN]);
    }

    fn conf(&self) -> PathBuf {
        self.folder.join("softhsm2.conf")
    }

    /// Through SoftHSM2's own module, which needs `SOFTHSM2_CONF`.
    pub(crate) fn uri(&self, names: &str) -> String {
        self.uri_through(&self.module, names)
    }

    pub(crate) fn uri_through(&self, module: &Path, names: &str) -> String {
        let pin = self.folder.join("pin");
        format!("pkcs11:{names}?module-path={}&pin-source={}", module.display(), pin.display())
    }

    /// The usual configuration, with this key in place of the file of the seal's.
    pub(crate) fn config(&self, bank: SocketAddr, uri: &str, top: &str) -> String {
        with_key(&file_config(bank, "", top), "qsealc.key", uri)
    }

    pub(crate) fn start(&self, yaml: &str) -> Started {
        start(yaml, &[("SOFTHSM2_CONF", self.conf().to_str().expect("UTF-8"))])
    }

    pub(crate) fn check(&self, yaml: &str) -> (Option<i32>, String) {
        checked(yaml, &[("SOFTHSM2_CONF", self.conf().to_str().expect("UTF-8"))])
    }

    /// Where it is not to start.
    pub(crate) fn refused(&self, yaml: &str) -> String {
        let (code, said) = ended("run", yaml, &[("SOFTHSM2_CONF", self.conf().to_str().expect("UTF-8"))]);
        assert_eq!(code, Some(78), "{said}");
        said
    }

    /// Takes the token away, or back.
    pub(crate) fn withdraw(&self) {
        std::fs::rename(self.folder.join("tokens"), self.folder.join("away")).expect("a folder");
    }

    pub(crate) fn restore(&self) {
        std::fs::rename(self.folder.join("away"), self.folder.join("tokens")).expect("a folder");
    }
}

/// A configuration with a key on a token in place of one of the kit's files.
pub(crate) fn with_key(yaml: &str, file: &str, uri: &str) -> String {
    let key = format!("key: {}", kit().path(file).display());
    assert!(yaml.contains(&key), "{yaml}");
    yaml.replace(&key, &format!("key: \"{uri}\""))
}

/// The same with one of the kit's keys on a token that this process's tests share.
pub(crate) fn with_shared_key(yaml: &str, file: &str) -> String {
    static SHARED: OnceLock<(SoftHsm, Slow)> = OnceLock::new();
    let (token, module) = SHARED.get_or_init(|| {
        let token = SoftHsm::new().expect("SEALPROXY_TEST_TOKEN needs SoftHSM2");
        // Not because it is slow: it finds its token without a variable of the environment.
        let module = Slow::before(&token, &[]);
        (token, module)
    });
    let label = if file == "qwac.key" { "qwac" } else { "qseal" };
    with_key(yaml, file, &token.uri_through(&module.module, &format!("token=seals;object={label}")))
}

/// The module that makes a token slow. Finds its token by itself.
pub(crate) struct Slow {
    pub(crate) module: PathBuf,
    file: PathBuf,
}

impl Slow {
    /// `without`: numbers of mechanisms that the token shall not have.
    pub(crate) fn before(token: &SoftHsm, without: &[u32]) -> Self {
        let slow = Self { module: token.folder.join("slow.so"), file: token.folder.join("slow.ms") };
        slow.takes(0);
        let text = |name: &str, path: &Path| format!("-D{name}=\"{}\"", path.display());
        // At least one, and no mechanism has this number.
        let without = without.iter().fold("~0UL".to_owned(), |list, number| format!("{list},{number}"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviour/token/slow_module.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-pthread"]);
        compiler.args([text("REAL", &token.module), text("CONF", &token.conf()), text("SLOW", &slow.file)]);
        compiler.arg(format!("-DWITHOUT={without}")).arg("-o").arg(&slow.module).arg(source).arg("-ldl");
        assert!(compiler.status().expect("a C compiler").success());
        slow
    }

    /// How long a signature takes from now on.
    pub(crate) fn takes(&self, milliseconds: u32) {
        self.write(milliseconds.into());
    }

    /// Flips a bit of each signature from now on.
    pub(crate) fn errs(&self) {
        self.write(-1);
    }

    fn write(&self, milliseconds: i64) {
        // Whole at any moment: it is read meanwhile.
        let fresh = self.file.with_extension("fresh");
        std::fs::write(&fresh, milliseconds.to_string()).expect("a file");
        std::fs::rename(fresh, &self.file).expect("a file");
    }
}
