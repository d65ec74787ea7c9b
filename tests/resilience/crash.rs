//! `kill -9` under load: every answer a client has is in the request log once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nexusgate::demo::provider::{Mix, Reply};
use rand::RngExt as _;

use crate::support::database::rows_by_marker;
use crate::support::load::{End, Seen};
use crate::support::{Load, Site, machine};

/// Requests per second.
const RATE: u32 = 300;
const KILLS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_kills_lose_nothing_and_double_nothing() {
    let _machine = machine().await;
    let site = Site::new(&[]).await;
    // Answers of every length, so that each kill finds requests at every stage.
    site.provider.mix(
        Mix::seeded(7)
            .with(4, Reply::text("Said at once."))
            .with(2, Reply::text("Said after some thought.").after(Duration::from_millis(15)))
            .with(2, Reply::text("Said slowly, word by word by word.").every(Duration::from_millis(4)))
            .with(1, Reply::text("Said in one go, and late.").after(Duration::from_millis(60)).in_one_go()),
    );
    let mut replica = site.replica("a").started().await;
    let started = Instant::now();
    let load = Load::on(&[replica.url("")], RATE).start();
    for _ in 0..KILLS {
        // A random moment: somewhere within the next three seconds of answers, in the middle of a replay too.
        let answers = rand::rng().random_range(1..900);
        load.more(answers).await;
        replica.kill();
        replica.start().await;
    }
    load.more(100).await;
    let took = started.elapsed();
    let seen = load.stop().await;
    let scrape = replica.settled().await;
    let torn = scrape.metric("nexusgate_journal_damaged_records_total").value();
    assert!(replica.terminate().await.success(), "everything was written:\n{}", replica.output());

    let rows = rows_by_marker(&site.database_url).await;
    let mut broken = 0;
    let mut lost = Vec::new();
    for Seen { marker, end, .. } in &seen {
        match end {
            End::Answered(200) if !rows.contains_key(marker) => lost.push(marker),
            End::Answered(200) => {}
            End::Answered(other) => panic!("{marker} was answered {other}"),
            End::Broken(_) => broken += 1,
        }
    }
    let answered = seen.len() - broken;
    let doubled: Vec<_> = rows.iter().filter(|(_, count)| **count > 1).collect();
    let unheard =
        seen.iter().filter(|one| one.end != End::Answered(200) && rows.contains_key(&one.marker)).count();
    println!(
        "{KILLS} kills in {:.1} s at {RATE} requests/s: {} sent, {answered} answered in full, {broken} cut off or \
         refused; {} rows: {} lost, {} doubled; {unheard} in the log of which the client did not get the end; \
         {torn} torn records",
        took.as_secs_f64(),
        seen.len(),
        rows.values().sum::<usize>(),
        lost.len(),
        doubled.len(),
    );
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert!(doubled.is_empty(), "doubled: {doubled:?}");
    // The log holds no request that was not sent.
    let sent: BTreeSet<&String> = seen.iter().map(|one| &one.marker).collect();
    assert!(rows.keys().all(|marker| sent.contains(marker)));
    assert!(broken > 0, "the kills came under load");
    assert!(answered > KILLS * 50, "there was a load");
}
