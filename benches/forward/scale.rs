//! What a request costs with more threads, open connections and routes, what an idle connection holds, and how few
//! connections spread over the reactors. Sealed GETs throughout.

use std::time::Duration;

use super::Case;
use super::load::{Address, Load, Run};
use super::process::{Process, Setup, Workshop};

/// Of one figure.
const TIME: Duration = Duration::from_secs(1);
/// The figures are medians of so many, taken in turns.
const ROUNDS: usize = 3;
/// Requests at a time where there are more connections.
const CALLERS: usize = 32;
const CROWD: usize = 1000;

pub(crate) fn run(workshop: &Workshop) {
    // A thousand connections and what else a process has are more than most may open unasked.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).expect("up to the maximum anybody may");
    let one = workshop.proxy(&Setup::default());
    let two = workshop.proxy(&Setup { threads: 2, ..Setup::default() });
    threads(&one, &two);
    routes(workshop, &one);
    connections(&one);
    idle(workshop);
    spread(&two);
}

fn threads(one: &Process, two: &Process) {
    let load = || Load::new(&Case::get(), CALLERS);
    let figures = in_turns([(one, load()), (two, load())]);
    header("threads", "beside one");
    row("1", figures[0], figures[0]);
    row("2", figures[1], figures[0]);
}

fn routes(workshop: &Workshop, few: &Process) {
    let many = workshop.proxy(&Setup { routes: CROWD - 2, ..Setup::default() });
    let load = || Load::new(&Case::get(), CALLERS);
    let figures = in_turns([(few, load()), (&many, load())]);
    header("routes", "beside the fewest");
    row("2", figures[0], figures[0]);
    row(CROWD, figures[1], figures[0]);
}

fn connections(proxy: &Process) {
    for (callers, counts) in [(1, [1, 32, 100, CROWD]), (CALLERS, [CALLERS, 100, 300, CROWD])] {
        let figures = in_turns(counts.map(|count| (proxy, Load::new(&Case::get(), count).by(callers))));
        header(&format!("connections, {callers} busy"), "beside the fewest");
        for (count, figure) in counts.iter().zip(figures) {
            row(count, figure, figures[0]);
        }
    }
}

/// Memory by connections that have had a request, and wait for the next one.
fn idle(workshop: &Workshop) {
    let proxy = workshop.proxy(&Setup::default());
    println!("\n| idle connections | RSS MiB | KiB each |");
    println!("|-----------------:|--------:|---------:|");
    let (mut open, mut least) = (Vec::new(), 0.0);
    for count in [1, 100, CROWD] {
        open.extend(Load::new(&Case::get(), count - open.len()).connect(&proxy.tcp()));
        // What the requests themselves held is given back in a moment.
        std::thread::sleep(TIME / 4);
        let rss = proxy.rss();
        least = if count == 1 { rss } else { least };
        println!("| {count:>16} | {rss:>7.1} | {:>8.1} |", (rss - least) * 1024.0 / (count - 1).max(1) as f64);
    }
}

/// The share of the busier of two reactors: half where they have the same to do.
fn spread(proxy: &Process) {
    let share = |count: usize, address: Address| {
        // Whoever came before has gone: a newcomer is seated where the fewest are.
        std::thread::sleep(TIME / 4);
        let run = Load::new(&Case::get(), count).run(proxy, &address, TIME);
        format!("{:.0} %", run.busiest * 100.0)
    };
    println!("\n| connections on 2 reactors | the busier one, TCP | Unix socket |");
    println!("|--------------------------:|--------------------:|------------:|");
    for count in [2, 4, 8, 16] {
        println!("| {count:>25} | {:>19} | {:>11} |", share(count, proxy.tcp()), share(count, proxy.unix()));
    }
}

/// Requests a second and CPU of each, round after round.
fn in_turns<const N: usize>(loads: [(&Process, Load); N]) -> [[f64; 2]; N] {
    let mut runs: [Vec<Run>; N] = std::array::from_fn(|_| Vec::new());
    for _ in 0..ROUNDS {
        for ((proxy, load), runs) in loads.iter().zip(&mut runs) {
            runs.push(load.run(proxy, &proxy.tcp(), TIME));
        }
    }
    runs.map(|runs| [median(&runs, |run| run.rate), median(&runs, |run| run.cpu)])
}

fn median(runs: &[Run], figure: impl Fn(&Run) -> f64) -> f64 {
    let mut figures: Vec<f64> = runs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn header(name: &str, beside: &str) {
    println!("\n| {name:>20} | req/s | CPU µs | {beside:>17} |");
    println!("|---------------------:|------:|-------:|------------------:|");
}

fn row(name: impl std::fmt::Display, figure: [f64; 2], beside: [f64; 2]) {
    println!("| {name:>20} | {:>5.0} | {:>6.0} | {:>17.2} |", figure[0], figure[1], figure[1] / beside[1]);
}
