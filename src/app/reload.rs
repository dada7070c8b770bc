//! The only watcher: looks at the files when their folders change, at times, and when a certificate's time has come or
//! gone; reads the configuration anew when asked. Builds the next generation beside the present one, checks it, and swaps
//! it in whole. A bad one changes nothing: it is counted, logged and shown.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::Process;
use super::folders::Folders;
use super::generation::{self, Generation};
use super::marks::Marks;
use super::status::{Reload, Status};
use crate::admin;
use crate::config::{Config, Finding};
use crate::log::{Importance, Log, timestamp};
use crate::proxy::Shared;

/// Keeps the generation in place that is served.
pub(super) struct Reloader {
    process: Arc<Process>,
    shared: Arc<Shared>,
    pages: Arc<admin::State>,
    log: Log,
    present: Arc<Generation>,
    /// Counts what was put in place.
    number: u64,
    since: SystemTime,
    /// The state of the files that was judged last.
    seen: Marks,
    judged: Instant,
    last: Option<Reload>,
    /// Whether the configuration that was read last was refused.
    rejected: bool,
    folders: Folders,
}

impl Reloader {
    /// Begins with the generation that is served, which was built when the files were in the state `seen`.
    pub(super) fn new(
        process: Arc<Process>,
        shared: Arc<Shared>,
        pages: Arc<admin::State>,
        log: Log,
        present: Generation,
        seen: Marks,
    ) -> Self {
        let (since, judged) = (SystemTime::now(), Instant::now());
        let present = Arc::new(present);
        let folders = Folders::new();
        let mut reloader = Self {
            process,
            shared,
            pages,
            log,
            present,
            number: 1,
            since,
            seen,
            judged,
            last: None,
            rejected: false,
            folders,
        };
        reloader.follow();
        reloader.report();
        reloader
    }

    /// Looks, for as long as it is let. Each message asks for the configuration to be read anew.
    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<()>) {
        let process = Arc::clone(&self.process);
        let mut verdicts = process.revocation.verdicts();
        loop {
            tokio::select! {
                () = self.folders.changed() => self.look().await,
                () = tokio::time::sleep(self.until_next_look()) => self.look().await,
                Ok(()) = verdicts.changed() => self.look().await,
                Some(()) = asked.recv() => self.reconfigure().await,
            }
            self.report();
        }
    }

    fn until_next_look(&self) -> Duration {
        let now = SystemTime::now();
        let change = self.present.next_change(now).and_then(|moment| moment.duration_since(now).ok());
        change.map_or(POLL, |change| change.min(POLL))
    }

    /// Looks at the files, and builds a generation where they or the time give a reason to.
    async fn look(&mut self) {
        let mut marks = self.marks(&self.present.config).await;
        let changed = marks != self.seen;
        let retries = self.present.errors().next().is_some() && self.judged.elapsed() > RETRY;
        let stopped = self
            .present
            .holdings
            .iter()
            .any(|(name, holding)| self.process.revocation.stopped(name) != holding.stopped);
        if !changed && !retries && !stopped && !self.present.has_aged(SystemTime::now()) {
            return;
        }
        if changed {
            // A list of revocations may be among them.
            self.process.revocation.look_again();
        }
        let Some(mut next) = self.build(&Arc::clone(&self.present.config), &marks).await else { return };
        // Whoever writes certificate and key one after the other is given a moment to finish. What is tried again, or has
        // not changed meanwhile, is as it was: a token must not be asked again and again.
        for _ in 0..if changed { ROUNDS } else { 0 } {
            let after = self.marks(&self.present.config).await;
            if after == marks && next.errors().next().is_none() {
                break;
            }
            tokio::time::sleep(SETTLE).await;
            if after != marks {
                marks = after;
                let Some(built) = self.build(&Arc::clone(&self.present.config), &marks).await else { return };
                next = built;
            }
        }
        let refused = changed || next.errors().ne(self.present.errors());
        self.seen = marks;
        self.judged = Instant::now();
        let trigger = match (changed || retries, stopped) {
            (true, _) => "files",
            (false, true) => "revocation",
            (false, false) => "time",
        };
        self.put(next, trigger, refused);
    }

    /// Reads the configuration anew, and takes it as a whole or not at all.
    async fn reconfigure(&mut self) {
        let file = self.present.config.file.clone();
        let loaded = spawn_blocking(move || Config::load(&file)).await;
        let (config, findings) = match loaded.expect("reading a configuration does not panic") {
            Ok((config, findings)) => (Arc::new(config), findings),
            Err(findings) => return self.refuse(&findings),
        };
        let fixed = fixed(&self.present.config, &config);
        if !fixed.is_empty() {
            return self.refuse(&fixed);
        }
        let marks = self.marks(&config).await;
        let Some(mut next) = self.build(&config, &marks).await else { return };
        if self.loses(&next) {
            return self.refuse(&next.findings);
        }
        next.findings.extend(findings);
        self.rejected = false;
        self.seen = marks;
        self.judged = Instant::now();
        self.put(next, "configuration", false);
        self.follow();
    }

    /// Whether a configuration has errors of its own, or takes away what works.
    fn loses(&self, next: &Generation) -> bool {
        let now = SystemTime::now();
        let worse = next.holdings.iter().any(|(name, holding)| {
            let is_same = self.present.config.identities.get(name) == next.config.identities.get(name);
            (holding.is_bad() && !is_same) || (self.present.is_usable(name, now) && !next.is_usable(name, now))
        });
        // A bank that could be reached by the one is to be reached by the other.
        let cut_off = next
            .lines
            .iter()
            .any(|(name, line)| !line.is_usable && self.present.lines.get(name).is_some_and(|before| before.is_usable));
        next.is_faulty || worse || cut_off
    }

    /// Not on this thread, which has the acceptors too: keys may be derived from passphrases, and disks are slow.
    /// `None` if it panicked, which is told: what is served goes on.
    async fn build(&mut self, config: &Arc<Config>, marks: &Marks) -> Option<Generation> {
        let (config, process, present) = (Arc::clone(config), Arc::clone(&self.process), Arc::clone(&self.present));
        let (file, seen) = (config.file.clone(), marks.clone());
        let (marks, runtime) = (marks.clone(), Handle::current());
        let building = spawn_blocking(move || {
            runtime.block_on(generation::build(&config, &process, Some(&present), &marks, SystemTime::now()))
        });
        match building.await {
            Ok(generation) => Some(generation),
            Err(_) => {
                let reason = "a fault of this program: the files or the configuration could not be judged";
                self.seen = seen;
                self.refuse(&[Finding::error(&file, "", reason).hint("report it, and put the files back")]);
                None
            }
        }
    }

    async fn marks(&self, config: &Arc<Config>) -> Marks {
        let config = Arc::clone(config);
        let marks = spawn_blocking(move || Marks::of(generation::files(&config))).await;
        marks.expect("reading files does not panic")
    }

    /// Puts a generation in the place of the present one. Those who arrive from now on are served by it; what is under
    /// way under the old one has the drain time.
    fn put(&mut self, next: Generation, trigger: &'static str, refused: bool) {
        let earlier = std::mem::replace(&mut self.present, Arc::new(next));
        if self.present.differs(&earlier) {
            self.shared.replace(self.present.routes(&self.process));
            self.number += 1;
            self.since = SystemTime::now();
            earlier.retire(&self.present);
            self.tell(trigger, "applied", self.present.findings.clone());
        } else if self.present.edition != earlier.edition {
            self.tell(trigger, "applied", self.present.findings.clone());
        } else if refused && self.present.errors().next().is_some() {
            self.tell(trigger, "refused", self.present.errors().cloned().collect());
        } else if earlier.errors().next().is_some() && self.present.errors().next().is_none() {
            self.tell(trigger, "restored", self.present.findings.clone());
        }
        self.follow();
    }

    /// Says why nothing of a configuration was taken over.
    fn refuse(&mut self, findings: &[Finding]) {
        self.rejected = true;
        let errors = findings.iter().filter(|finding| finding.is_error()).cloned().collect();
        self.tell("configuration", "refused", errors);
    }

    fn tell(&mut self, trigger: &'static str, result: &'static str, findings: Vec<Finding>) {
        let findings = findings.iter().map(Finding::to_string).collect();
        let reload = Reload { time: timestamp(SystemTime::now()), event: "reload", trigger, result, findings };
        let line = serde_json::to_string(&Line { reload: &reload, generation: self.number });
        self.log.line(line.expect("plain strings"), Importance::Keep);
        self.process.standing.reloads.with_label_values(&[result]).inc();
        self.last = Some(reload);
    }

    fn follow(&mut self) {
        self.process.revocation.update(self.present.watched());
        self.folders.follow(self.seen.files());
    }

    /// Shows the present state on the pages and in the metrics.
    fn report(&self) {
        let now = SystemTime::now();
        let is_refused = self.rejected || self.present.errors().next().is_some();
        self.process.standing.show(&self.present, self.number, is_refused, now);
        let verdicts = self.process.revocation.verdicts();
        let verdicts = verdicts.borrow().clone();
        let status = Status::new(&self.present, &verdicts, self.number, self.since, self.last.as_ref(), now);
        self.pages.set_standing(admin::Standing {
            usable: self.present.is_any_usable(now),
            upstreams: self.present.lines.iter().map(|(name, line)| (name.clone(), line.is_usable)).collect(),
            status: status.render().into(),
        });
    }
}

/// What only a restart can change, and the file wants otherwise.
fn fixed(present: &Config, next: &Config) -> Vec<Finding> {
    let settings = [
        ("listen", present.listen == next.listen),
        ("admin", present.admin == next.admin),
        ("threads", present.threads == next.threads),
        ("limits", present.limits == next.limits),
        ("timeouts", present.timeouts == next.timeouts),
        ("timeouts.linger", present.linger == next.linger),
        ("timeouts.drain", present.drain == next.drain),
    ];
    let changed = settings.into_iter().filter(|(_, is_same)| !is_same);
    let finding = |(key, _)| {
        let reason = "has changed, and only a restart can change it: nothing of the file was taken over";
        Finding::error(&next.file, key, reason).hint("restart, or take the change back")
    };
    changed.map(finding).collect()
}

/// The log line of a reload.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    reload: &'a Reload,
    /// What is in place after it.
    generation: u64,
}

/// How often the files are looked at without an event: some file systems have none.
const POLL: Duration = Duration::from_secs(5);
/// How often what is wrong is tried again without an event: a token may be back.
const RETRY: Duration = Duration::from_secs(15);
/// How long files that do not belong together may take to do so.
const SETTLE: Duration = Duration::from_millis(150);
const ROUNDS: usize = 4;
