//! Lines of JSON to one writer thread, through a bounded buffer: a reader that stops reading never stops a request.
//! Must not know what the lines say.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus::IntCounter;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};

/// Where lines go. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    capacity: usize,
    dropped: IntCounter,
    complained: AtomicBool,
}

#[derive(Default)]
struct Queue {
    lines: Lines,
    closed: bool,
    /// Whether the writer waits to be woken.
    asleep: bool,
}

/// Lines one after the other, as they are going to be written.
#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    count: usize,
}

impl Lines {
    /// Keeps the room for the next ones, unless a crowd has made it large.
    fn clear(&mut self) {
        self.count = 0;
        self.text.clear();
        self.text.shrink_to(ROOM);
    }
}

/// What a busy moment brings.
const ROOM: usize = 64 * 1024;

/// How many lines wake the writer, however busy the thread is that they come from.
const CROWD: usize = 64;

thread_local! {
    /// Whether this thread has yet to wake the writer; `None`: it does with each line.
    static OWES: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Whether a line may be lost when the reader is too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// Dropped and counted when the buffer is full.
    Usual,
    /// Kept where others are dropped, up to several times the buffer: somebody's money depends on it.
    Keep,
}

/// The name of a field as lines have it: between its comma and its colon. Made by `name!`.
#[derive(Clone, Copy)]
pub struct Name(&'static str);

impl Name {
    /// What `name!` writes.
    pub const fn written(text: &'static str) -> Self {
        Self(text)
    }
}

/// The name of a field of [`Fields`]. One of ours: plain ASCII, which needs no escapes. Every request writes twenty of
/// them, so they are put together beforehand.
macro_rules! name {
    ($name:literal) => {
        $crate::log::Name::written(concat!(",\"", $name, "\":"))
    };
}
pub(crate) use name;

/// One JSON object, field by field.
pub struct Fields<'a> {
    line: &'a mut Vec<u8>,
}

impl Fields<'_> {
    /// A number, a truth value or `null`.
    pub fn put(&mut self, name: Name, value: impl Serialize) {
        self.name(name);
        serde_json::to_writer(&mut *self.line, &value).expect(PLAIN);
    }

    /// A text, whatever it holds.
    pub fn text(&mut self, name: Name, value: &str) {
        // All bytes, whatever the first ones say: without an early end the compiler looks at many at a time.
        if value.bytes().fold(false, |odd, byte| odd | (byte < b' ') | (byte == b'"') | (byte == b'\\')) {
            return self.put(name, value);
        }
        self.name(name);
        self.line.push(b'"');
        self.line.extend_from_slice(value.as_bytes());
        self.line.push(b'"');
    }

    /// A text, or `null`.
    pub fn text_or_null(&mut self, name: Name, value: Option<&str>) {
        match value {
            Some(value) => self.text(name, value),
            None => self.put(name, ()),
        }
    }

    /// A duration in milliseconds, with three decimals, or `null`.
    pub fn milliseconds(&mut self, name: Name, duration: Option<Duration>) {
        let Some(duration) = duration else { return self.put(name, ()) };
        let microseconds = u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX);
        self.put(name, microseconds / 1000);
        let digit = |power: u64| b'0' + u8::try_from(microseconds / power % 10).expect("one digit");
        self.line.extend([b'.', digit(100), digit(10), digit(1)]);
    }

    fn name(&mut self, Name(text): Name) {
        // No comma before the first.
        let comma = usize::from(self.line.len() == 1);
        self.line.extend_from_slice(&text.as_bytes()[comma..]);
    }
}

/// Why writing a record as JSON cannot fail.
const PLAIN: &str = "plain strings and numbers";

/// How many times as many lines the buffer holds where those over its capacity are to be kept.
const KEPT: usize = 8;

/// A moment as log lines write it: RFC 3339, UTC, milliseconds.
pub fn timestamp(time: SystemTime) -> String {
    const MILLISECONDS: EncodedConfig =
        Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: NonZeroU8::new(3) }).encode();
    // Fails only for years beyond 9999.
    OffsetDateTime::from(time).format(&Iso8601::<MILLISECONDS>).unwrap_or_default()
}

/// The writer thread. Closing it writes what is left.
pub struct Writer {
    log: Log,
    done: Receiver<()>,
}

impl Log {
    /// Starts the writer thread over `out`, with room for `capacity` lines.
    pub fn start(out: impl Write + Send + 'static, capacity: usize) -> io::Result<(Self, Writer)> {
        let dropped = IntCounter::new(
            "sealproxy_log_dropped_lines_total",
            "Log lines lost because nobody read them or they could not be written.",
        )
        .expect("the metric's name is legal");
        let shared = Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            capacity,
            dropped,
            complained: AtomicBool::new(false),
        };
        let log = Self { shared: Arc::new(shared) };
        let reader = log.clone();
        let (end, done) = mpsc::channel();
        std::thread::Builder::new().name("log".into()).spawn(move || {
            let mut lines = Lines::default();
            let mut out = Out { out, is_torn: false };
            let mut ended: Option<Instant> = None;
            while reader.wait(&mut lines) {
                let is_crowded = is_crowded(lines.count, ended.map(|ended| ended.elapsed()));
                if let Err(error) = out.write(&lines.text, |error, tries| reader.waits_for_room(error, tries)) {
                    // How many of them were written nobody knows: counted are those that may be lost.
                    reader.shared.dropped.inc_by(lines.count as u64);
                    reader.complain_once(&error);
                }
                ended = Some(Instant::now());
                if is_crowded {
                    reader.pause();
                }
            }
            // Whoever waited has waited long enough where nobody does any more.
            let _ = end.send(());
        })?;
        Ok((log.clone(), Writer { log, done }))
    }

    /// Queues a record as one line of JSON. A record is plain strings and numbers.
    pub fn entry(&self, record: &impl Serialize, importance: Importance) {
        self.line(importance, |line| serde_json::to_writer(line, record).expect(PLAIN));
    }

    /// The same for a record that every request has: its names are not escaped anew for each line.
    pub fn fields(&self, importance: Importance, write: impl FnOnce(&mut Fields<'_>)) {
        self.line(importance, |line| {
            line.push(b'{');
            write(&mut Fields { line });
            line.push(b'}');
        });
    }

    fn line(&self, importance: Importance, write: impl FnOnce(&mut Vec<u8>)) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            write(line);
            line.push(b'\n');
            self.queue(line, importance);
        });
    }

    fn queue(&self, line: &[u8], importance: Importance) {
        let mut queue = self.lock();
        // Lines to keep have room of their own, and an end as well: memory is needed for the requests themselves.
        let room = match importance {
            Importance::Usual => self.shared.capacity,
            Importance::Keep => self.shared.capacity.saturating_mul(KEPT),
        };
        if queue.lines.count >= room {
            self.shared.dropped.inc();
            return;
        }
        queue.lines.text.extend_from_slice(line);
        queue.lines.count += 1;
        // What is to be kept waits for nothing: no answer of its own comes after it.
        let is_urgent = importance == Importance::Keep || queue.lines.count >= CROWD.min(self.shared.capacity);
        if queue.asleep && (is_urgent || OWES.get().is_none()) {
            self.wake(queue);
        } else if queue.asleep {
            OWES.set(Some(true));
        }
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        if std::mem::take(&mut queue.asleep) {
            drop(queue);
            self.shared.filled.notify_one();
        }
    }

    /// From now on this thread wakes the writer by [`Log::idle`], which it is to call whenever it has nothing else to
    /// do. A line comes before its answer has left: on a core of one's own the writer would go first.
    pub fn wake_when_idle() {
        OWES.set(Some(false));
    }

    /// Wakes the writer, if this thread has lines for it that it does not know of.
    pub fn idle(&self) {
        if OWES.get() == Some(true) {
            OWES.set(Some(false));
            self.wake(self.lock());
        }
    }

    /// Whether a write that failed is to be tried again, after a moment. What comes meanwhile is queued, as for a
    /// reader who is slow.
    fn waits_for_room(&self, error: &io::Error, tries: u32) -> bool {
        match error.kind() {
            io::ErrorKind::WouldBlock => {}
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.complain_once(error),
            _ => return false,
        }
        std::thread::sleep(SOON.saturating_mul(tries.max(1)).min(ROOM_LOOK));
        true
    }

    /// A log that cannot be written cannot be complained about in the log.
    fn complain_once(&self, error: &io::Error) {
        if !self.shared.complained.swap(true, Ordering::Relaxed) {
            // stderr may be gone as well.
            let _ =
                writeln!(io::stderr(), "warning: the log cannot be written, and its lines are lost in time: {error}");
        }
    }

    /// Lines lost so far.
    pub fn dropped(&self) -> &IntCounter {
        &self.shared.dropped
    }

    /// Waits for lines and puts them in the place of those that have been written; `false` once the log is closed and
    /// empty.
    fn wait(&self, lines: &mut Lines) -> bool {
        lines.clear();
        let mut queue = self.lock();
        while queue.lines.count == 0 {
            if queue.closed {
                return false;
            }
            queue.asleep = true;
            queue = self.shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.asleep = false;
        std::mem::swap(&mut queue.lines, lines);
        true
    }

    /// Lets lines come together where there are many: to wake a thread and to write a line of its own costs more than
    /// the line itself.
    fn pause(&self) {
        let closed = |queue: &mut Queue| !queue.closed;
        drop(self.shared.filled.wait_timeout_while(self.lock(), TOGETHER, closed));
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue of lines is whole after any panic.
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where lines are written, piece by piece, so that it is known where a failure left them.
struct Out<W> {
    out: W,
    /// Whether the last line that was begun has no end.
    is_torn: bool,
}

impl<W: Write> Out<W> {
    /// Writes all. A line that was torn ends first.
    fn write(&mut self, text: &[u8], mut may_wait: impl FnMut(&io::Error, u32) -> bool) -> io::Result<()> {
        if self.is_torn {
            self.write_on(b"\n", &mut may_wait)?;
        }
        self.write_on(text, &mut may_wait)?;
        self.out.flush()
    }

    fn write_on(&mut self, mut text: &[u8], may_wait: &mut impl FnMut(&io::Error, u32) -> bool) -> io::Result<()> {
        let mut tries = 0;
        while !text.is_empty() {
            match self.out.write(text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    tries = 0;
                    self.is_torn = text[written - 1] != b'\n';
                    text = &text[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if may_wait(&error, tries) => tries += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Writer {
    /// Writes what is queued and ends the thread. Lines that come later stay unwritten, and so do those that a reader
    /// who has stopped reading leaves no room for: a process that is asked to end must end. Returns whether all were
    /// written.
    pub fn close(self) -> bool {
        self.log.lock().closed = true;
        self.log.shared.filled.notify_one();
        self.done.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout)
    }
}

/// Whether lines come many at a time. Those that come one by one are written as they come: the end of a pause behind
/// one would fall into another request.
fn is_crowded(lines: usize, since_the_last: Option<Duration>) -> bool {
    lines > 1 || since_the_last.is_some_and(|since| since < CLOSE)
}

/// How often it is looked whether there is room again: soon at first, for a reader who keeps up.
const SOON: Duration = Duration::from_millis(1);
const ROOM_LOOK: Duration = Duration::from_millis(20);
/// How much later than its request a line may come.
const TOGETHER: Duration = Duration::from_millis(5);
/// What is closer to the last one is one of many.
const CLOSE: Duration = Duration::from_millis(2);
/// For a reader that is slow; one that is there takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Blocks in its first write until it is released.
    struct Stuck(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_but_never_those_that_must_be_kept() {
        let (release, stuck) = mpsc::channel();
        let written = Arc::new(Mutex::default());
        let (log, writer) = Log::start(Stuck(stuck, Arc::clone(&written)), 10).expect("a thread");
        (0..100).for_each(|n| log.entry(&format!("usual {n}"), Importance::Usual));
        log.entry(&"payment", Importance::Keep);
        assert!(log.dropped().get() >= 80, "{} dropped", log.dropped().get());
        drop(release);
        writer.close();
        let written = String::from_utf8(written.lock().expect("no panic").clone()).expect("text");
        assert!(written.ends_with("\"payment\"\n"), "{written}");
        assert_eq!(written.lines().count() as u64, 101 - log.dropped().get());
    }

    #[test]
    fn a_line_of_fields_is_what_serde_would_write() {
        #[derive(Serialize)]
        struct Record<'a> {
            first: &'a str,
            odd: &'a str,
            count: u64,
            took: Option<f64>,
            none: Option<&'a str>,
        }
        let odd: String = (0..0x250).filter_map(char::from_u32).collect();
        let record = Record { first: "plain", odd: &odd, count: 7, took: Some(0.088), none: None };
        let written = Arc::new(Mutex::default());
        let (log, writer) = Log::start(Stuck(mpsc::channel().1, Arc::clone(&written)), 10).expect("a thread");
        log.entry(&record, Importance::Usual);
        log.fields(Importance::Usual, |line| {
            line.text(name!("first"), record.first);
            line.text(name!("odd"), record.odd);
            line.put(name!("count"), record.count);
            line.put(name!("took"), record.took);
            line.text_or_null(name!("none"), record.none);
        });
        writer.close();
        let written = String::from_utf8(written.lock().expect("no panic").clone()).expect("text");
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], lines[1]);
    }

    /// Lines that came, as far as they are written within a while.
    fn written_by(log: &Log, written: &Mutex<Vec<u8>>, lines: usize, until: Duration) -> usize {
        let count = || written.lock().expect("no panic").iter().filter(|byte| **byte == b'\n').count();
        let end = Instant::now() + until;
        while count() < lines && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(log.dropped().get(), 0);
        count()
    }

    #[test]
    fn a_line_of_its_own_is_no_crowd() {
        assert!(!is_crowded(1, None));
        assert!(!is_crowded(1, Some(CLOSE)));
        assert!(is_crowded(1, Some(CLOSE / 2)));
        assert!(is_crowded(2, None));
    }

    #[test]
    fn a_thread_that_says_when_it_is_idle_wakes_nobody_before() {
        const SOON: Duration = Duration::from_millis(200);
        const LONG: Duration = Duration::from_secs(20);
        let written = Arc::new(Mutex::default());
        let (log, writer) = Log::start(Stuck(mpsc::channel().1, Arc::clone(&written)), 1000).expect("a thread");
        let until_asleep = || {
            while !log.lock().asleep {
                std::thread::yield_now();
            }
        };
        until_asleep();
        Log::wake_when_idle();
        log.entry(&1, Importance::Usual);
        assert_eq!(written_by(&log, &written, 1, SOON), 0, "its answer goes first");
        log.idle();
        assert_eq!(written_by(&log, &written, 1, LONG), 1);
        until_asleep();
        log.entry(&"payment", Importance::Keep);
        assert_eq!(written_by(&log, &written, 2, LONG), 2, "it is all that is known");
        until_asleep();
        (0..CROWD).for_each(|line| log.entry(&line, Importance::Usual));
        assert_eq!(written_by(&log, &written, 2 + CROWD, LONG), 2 + CROWD, "a thread may never be idle");
        writer.close();
    }

    #[test]
    fn a_duration_has_three_decimals_whatever_they_are() {
        let written = |nanoseconds| {
            let mut line = vec![b'{'];
            Fields { line: &mut line }.milliseconds(name!("took"), Some(Duration::from_nanos(nanoseconds)));
            String::from_utf8(line).expect("text")
        };
        assert_eq!(written(0), r#"{"took":0.000"#);
        assert_eq!(written(499), r#"{"took":0.000"#);
        assert_eq!(written(87_500), r#"{"took":0.088"#);
        assert_eq!(written(1_070_000), r#"{"took":1.070"#);
        assert_eq!(written(30_000_999_500), r#"{"took":30001.000"#);
    }

    /// Takes a piece or fails, as it was told.
    struct Fails {
        steps: VecDeque<Result<usize, io::ErrorKind>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Fails {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.steps.pop_front().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.written.lock().expect("no panic").extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What two lines come to, one after the other, and how many were lost.
    fn written_despite(steps: &[Result<usize, io::ErrorKind>]) -> (String, u64) {
        let written = Arc::new(Mutex::default());
        let out = Fails { steps: steps.iter().copied().collect(), written: Arc::clone(&written) };
        let (log, writer) = Log::start(out, 10).expect("a thread");
        for line in ["first", "second"] {
            log.entry(&line, Importance::Keep);
            while !log.lock().asleep {
                std::thread::yield_now();
            }
        }
        assert!(writer.close());
        let written = written.lock().expect("no panic").clone();
        (String::from_utf8(written).expect("text"), log.dropped().get())
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        assert_eq!(written_despite(&[Err(io::ErrorKind::BrokenPipe)]), ("\"second\"\n".to_owned(), 1));
    }

    #[test]
    fn a_line_that_was_torn_takes_no_other_with_it() {
        let torn = written_despite(&[Ok(3), Err(io::ErrorKind::Other)]);
        assert_eq!(torn, ("\"fi\n\"second\"\n".to_owned(), 1));
    }

    #[test]
    fn a_disk_that_is_full_for_a_while_and_a_slow_reader_cost_no_line() {
        let (full, slow) = (Err(io::ErrorKind::StorageFull), Err(io::ErrorKind::WouldBlock));
        let whole = ("\"first\"\n\"second\"\n".to_owned(), 0);
        assert_eq!(written_despite(&[Ok(3), full, full, Ok(1), slow, Err(io::ErrorKind::Interrupted)]), whole);
    }

    #[test]
    fn a_timestamp_has_three_decimals_whatever_they_are() {
        let at = |milliseconds| timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds));
        assert_eq!(at(1_795_412_462_000), "2026-11-23T05:41:02.000Z");
        assert_eq!(at(1_795_412_462_110), "2026-11-23T05:41:02.110Z");
    }
}
