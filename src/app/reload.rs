//! The only watcher: looks at the files when their folders change, at times, and when a certificate's time has come or
//! gone; reads the configuration anew when asked. Builds the next generation beside the present one, checks it, and
//! swaps it in whole. A bad one changes nothing: it is counted, logged and shown.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::Process;
use super::folders::Folders;
use super::generation::{self, Backends, Generation};
use super::marks::Marks;
use super::status::{Reload, Status, Trigger};
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
    /// Work that has not come to its end in time.
    stuck: Option<JoinHandle<()>>,
    folders: Folders,
    /// By what the seals of each upstream were made when it was last told, which at start is not for the log.
    backends: Backends,
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
        let backends = present.backends();
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
            stuck: None,
            folders,
            backends,
        };
        reloader.present.takes_over();
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
        let config = Arc::clone(&self.present.config);
        let Some(mut marks) = self.marks(&config).await else { return };
        let changed = marks != self.seen;
        let retries = self.present.errors().next().is_some() && self.judged.elapsed() > RETRY;
        let mut held = self.present.holdings.iter();
        let stopped = held.any(|(name, holding)| generation::stopped(&config, &self.process, name) != holding.stopped);
        if !changed && !retries && !stopped && !self.present.has_aged(SystemTime::now()) {
            return;
        }
        self.tell_revocation(&config, &self.seen, &marks);
        let Some(mut next) = self.build(&config, &marks).await else { return };
        // Whoever writes certificate and key one after the other is given a moment to finish. What is tried again, or
        // has not changed meanwhile, is as it was: a token must not be asked again and again.
        for _ in 0..if changed { ROUNDS } else { 0 } {
            let Some(after) = self.marks(&config).await else { return };
            let untouched = marks.is_untouched(&after);
            if untouched && next.errors().next().is_none() {
                break;
            }
            tokio::time::sleep(SETTLE).await;
            if !untouched {
                self.tell_revocation(&config, &marks, &after);
                marks = after;
                let Some(built) = self.build(&config, &marks).await else { return };
                next = built;
            }
        }
        let refused = changed || next.errors().ne(self.present.errors());
        self.seen = marks;
        self.judged = Instant::now();
        let trigger = match (changed || retries, stopped) {
            (true, _) => Trigger::Files,
            (false, true) => Trigger::Revocation,
            (false, false) => Trigger::Time,
        };
        self.put(next, trigger, refused);
    }

    /// New lists are read at once, whatever becomes of the rest; and again where one was touched since, because it may
    /// have been caught half written.
    fn tell_revocation(&self, config: &Config, before: &Marks, now: &Marks) {
        let [before, now] = [before, now].map(|marks| marks.only(generation::lists(config)));
        if !before.is_untouched(&now) {
            self.process.revocation.look_again();
        }
    }

    /// Reads the configuration anew, and takes it as a whole or not at all.
    async fn reconfigure(&mut self) {
        let file = self.present.config.file.clone();
        let Some(loaded) = self.patiently(Trigger::Configuration, move || Config::load(&file)).await else {
            return;
        };
        let (config, findings) = match loaded {
            Ok((config, findings)) => (Arc::new(config), findings),
            Err(findings) => return self.reject(&findings),
        };
        let fixed = fixed(&self.present.config, &config);
        if !fixed.is_empty() {
            return self.reject(&fixed);
        }
        let Some(marks) = self.marks(&config).await else { return };
        self.tell_revocation(&config, &self.seen, &marks);
        let Some(mut next) = self.build(&config, &marks).await else { return };
        if let Some(loss) = self.loss(&next) {
            if next.errors().next().is_none() {
                let hint = "nothing of the file was taken over: see /status for the state of its certificates";
                next.findings.push(
                    Finding::error(&next.config.file, loss, "could be used, and could not with this file")
                        .hint(hint)
                        .code("loses"),
                );
            }
            return self.reject(&next.findings);
        }
        next.findings.extend(findings);
        self.seen = marks;
        self.judged = Instant::now();
        let refused = next.errors().ne(self.present.errors());
        self.put(next, Trigger::Configuration, refused);
    }

    /// What keeps a configuration from being taken: errors of its own, or that it takes away what works. What it stops
    /// on purpose is no loss.
    fn loss(&self, next: &Generation) -> Option<String> {
        let now = SystemTime::now();
        let mut identities = next.holdings.iter();
        let worse = identities.find(|(name, holding)| {
            let is_same = self.present.config.identities.get(*name) == next.config.identities.get(*name);
            let is_stopped =
                holding.qwac.as_ref().is_some_and(|qwac| holding.stopped.contains(&qwac.certificate().id()));
            let is_lost = self.present.is_usable(name, now) && !next.is_usable(name, now) && !is_stopped;
            (holding.is_bad() && !is_same) || is_lost
        });
        // A bank that could be reached by the one is to be reached by the other.
        let mut lines = next.lines.iter();
        let cut_off = lines.find(|(name, line)| {
            !line.is_usable
                && !line.is_stopped()
                && self.present.lines.get(*name).is_some_and(|before| before.is_usable)
        });
        let worse = worse.map(|(name, _)| format!("identities.{name}"));
        worse
            .or_else(|| cut_off.map(|(name, _)| format!("upstreams.{name}")))
            .or_else(|| next.is_faulty.then(String::new))
    }

    async fn build(&mut self, config: &Arc<Config>, marks: &Marks) -> Option<Generation> {
        let (config, process, present) = (Arc::clone(config), Arc::clone(&self.process), Arc::clone(&self.present));
        let (marks, runtime) = (marks.clone(), Handle::current());
        let build =
            move || runtime.block_on(generation::build(&config, &process, Some(&present), &marks, SystemTime::now()));
        self.patiently(Trigger::Files, build).await
    }

    async fn marks(&mut self, config: &Arc<Config>) -> Option<Marks> {
        let config = Arc::clone(config);
        self.patiently(Trigger::Files, move || Marks::of(generation::files(&config))).await
    }

    /// Does `work` on a thread that may take its time: keys may be derived from passphrases, disks are slow, and this
    /// thread has the acceptors too. `None`, which is told, if it panicked or has not come to its end in a long while;
    /// until it has, nothing else is begun. What is served goes on.
    async fn patiently<T: Send + 'static>(
        &mut self,
        trigger: Trigger,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if self.stuck.as_ref().is_some_and(|stuck| !stuck.is_finished()) {
            if trigger == Trigger::Configuration {
                self.fail(trigger, "an earlier look at the files has not come to its end", "see the line about it");
            }
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let task = spawn_blocking(move || drop(sender.send(work())));
        match timeout(PATIENCE, receiver).await {
            Ok(Ok(result)) => Some(result),
            Ok(Err(_)) => {
                let reason = "a fault of this program: the files or the configuration could not be judged";
                self.fail(trigger, reason, "report it, and put the files back");
                None
            }
            Err(_) => {
                self.stuck = Some(task);
                let reason = format!("the files could not be read and judged within {} s", PATIENCE.as_secs());
                self.fail(
                    trigger,
                    &reason,
                    "look whether their disk answers, and the token: nothing is renewed meanwhile",
                );
                None
            }
        }
    }

    /// Puts a generation in the place of the present one. Those who arrive from now on are served by it; what is under
    /// way under the old one has the drain time.
    fn put(&mut self, next: Generation, trigger: Trigger, refused: bool) {
        let earlier = std::mem::replace(&mut self.present, Arc::new(next));
        // What was wrong with the configuration only a better one mends, whatever becomes of the files.
        let was_rejected = trigger == Trigger::Configuration && std::mem::take(&mut self.rejected);
        let was_bad = was_rejected || earlier.errors().next().is_some();
        let is_bad = self.present.errors().next().is_some();
        let differs = self.present.differs(&earlier);
        if differs {
            self.shared.replace(self.present.routes(&self.process));
            self.number += 1;
            self.since = SystemTime::now();
            earlier.retire(&self.present);
        }
        if differs || self.present.edition != earlier.edition {
            self.tell(trigger, "applied", self.present.findings.clone());
            if refused && is_bad {
                // One identity has changed, and another could not.
                self.process.standing.reloads.with_label_values(&["refused"]).inc();
            }
        } else if refused && is_bad {
            self.tell(trigger, "refused", self.present.errors().cloned().collect());
        } else if was_bad && !is_bad {
            self.tell(trigger, "restored", self.present.findings.clone());
        } else if self.present.has_new_trouble(&earlier) {
            self.tell(trigger, "warned", self.present.findings.clone());
        } else if self.present.staged() != earlier.staged() {
            self.tell(trigger, "staged", self.present.findings.clone());
        } else if (refused || trigger == Trigger::Configuration) && self.present.warnings().ne(earlier.warnings()) {
            // What is in use is as it was, and what is to be used one day is not: whoever installed it hears of it now.
            let result = if self.present.is_sounder(&earlier) { "restored" } else { "warned" };
            self.tell(trigger, result, self.present.findings.clone());
        } else if trigger == Trigger::Configuration {
            self.tell(trigger, "unchanged", self.present.findings.clone());
        }
        self.present.takes_over();
        self.follow();
    }

    /// Says why nothing of a configuration was taken over.
    fn reject(&mut self, findings: &[Finding]) {
        self.rejected = true;
        let errors = findings.iter().filter(|finding| finding.is_error()).cloned().collect();
        self.tell(Trigger::Configuration, "refused", errors);
    }

    /// Says why there was nothing to judge.
    fn fail(&mut self, trigger: Trigger, reason: &str, hint: &str) {
        let finding = Finding::error(&self.present.config.file, "", reason).hint(hint).code("not-judged");
        self.tell(trigger, "refused", vec![finding]);
    }

    fn tell(&mut self, trigger: Trigger, result: &'static str, findings: Vec<Finding>) {
        let findings = findings.iter().map(Finding::to_string).collect();
        let reload = Reload { time: timestamp(SystemTime::now()), event: "reload", trigger, result, findings };
        self.log.entry(&Line { reload: &reload, generation: self.number }, Importance::Keep);
        self.process.standing.reloads.with_label_values(&[result]).inc();
        self.last = Some(reload);
    }

    fn follow(&mut self) {
        self.process.revocation.update(self.present.watched());
        self.folders.follow(self.seen.files());
    }

    /// Says by what each upstream's seals are made, where that is news: with another key, and when a fault has ended
    /// the making of several at a time.
    fn tell_backends(&mut self) {
        let backends = self.present.backends();
        for (upstream, (backend, alone)) in &backends {
            if self.backends.get(upstream) != Some(&(*backend, *alone)) {
                let (time, event) = (timestamp(SystemTime::now()), "seal-backend");
                self.log.entry(&Backend { time, event, upstream, backend, alone: *alone }, Importance::Usual);
            }
        }
        self.backends = backends;
    }

    /// Shows the present state on the pages and in the metrics.
    fn report(&mut self) {
        self.tell_backends();
        let now = SystemTime::now();
        let is_stuck = self.stuck.as_ref().is_some_and(|stuck| !stuck.is_finished());
        let is_refused = self.rejected || is_stuck || self.present.errors().next().is_some();
        self.process.standing.show(&self.present, self.number, is_refused, now);
        let verdicts = self.process.revocation.verdicts();
        let verdicts = verdicts.borrow().clone();
        let status = Status::new(&self.present, &verdicts, self.number, self.since, self.last.as_ref(), now);
        self.pages.set_standing(admin::Standing {
            usable: self.present.may_serve(now),
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
        ("limits.body", present.limits.body == next.limits.body),
        ("limits.buffered", present.limits.buffered == next.limits.buffered),
        ("limits.connections", present.limits.connections == next.limits.connections),
        ("limits.in_flight", present.limits.in_flight == next.limits.in_flight),
        ("limits.header_bytes", present.limits.header_bytes == next.limits.header_bytes),
        ("limits.headers", present.limits.headers == next.limits.headers),
        ("timeouts.header", present.timeouts.header == next.timeouts.header),
        ("timeouts.body", present.timeouts.body == next.timeouts.body),
        ("timeouts.body_total", present.timeouts.body_total == next.timeouts.body_total),
        ("timeouts.client_idle", present.timeouts.client_idle == next.timeouts.client_idle),
        ("timeouts.seal", present.timeouts.seal == next.timeouts.seal),
        ("timeouts.exchange", present.timeouts.exchange == next.timeouts.exchange),
        ("timeouts.linger", present.linger == next.linger),
        ("timeouts.drain", present.drain == next.drain),
    ];
    let changed = settings.into_iter().filter(|(_, is_same)| !is_same);
    let finding = |(key, _)| {
        let reason = "has changed, and only a restart can change it: nothing of the file was taken over";
        Finding::error(&next.file, key, reason).hint("restart, or take the change back").code("needs-restart")
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

/// The log line of what makes an upstream's seals.
#[derive(Serialize)]
struct Backend<'a> {
    time: String,
    event: &'static str,
    upstream: &'a str,
    backend: &'static str,
    /// Why it makes one seal at a time, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    alone: Option<&'static str>,
}

/// How often the files are looked at without an event: some file systems have none.
const POLL: Duration = Duration::from_secs(5);
/// How long it may take to read and to judge all files: a token has 10 s to be opened, and as long for a test
/// signature.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often what is wrong is tried again without an event: a token may be back.
const RETRY: Duration = Duration::from_secs(15);
/// How long files that do not belong together may take to do so.
const SETTLE: Duration = Duration::from_millis(150);
const ROUNDS: usize = 4;
