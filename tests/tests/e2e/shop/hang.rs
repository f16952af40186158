//! What stands still and wakes again: the primary's server, and who decides about it.

use std::time::{Duration, Instant};

use homeostat_tests::begin;
use rustix::process::Signal;

use super::{SERVED, Shop, WELL};

/// Longer than a serving lease (5 s), and than a hang takes to be one (3 s); not as long as makes machines lost.
const LONG: Duration = Duration::from_millis(5700);

/// Longer than the pause of a primary that was asked for no more than its rate, and shorter than any change of primary
/// that silence could have set off.
const NO_OUTAGE_MS: f64 = 2500.0;

fn longest_pause_ms(shop: &Shop) -> f64 {
    let report = shop.report().unwrap();
    report["longest_pause_since_start_ms"].as_f64().unwrap()
}

#[test]
fn a_primary_that_stands_still_is_replaced_and_its_sleep_is_its_end() {
    let turn = begin();
    let shop = Shop::up();
    let before = shop.is_well_again();
    let (primary, was) = (Shop::primary(&before), Shop::epoch(&before));
    let server = Shop::server(&before, &primary);

    let began = Instant::now();
    server.signal(Signal::STOP);
    shop.cell.await_status("a new epoch", SERVED, |status| {
        let (epoch, cluster) = (Shop::epoch(status), Shop::cluster(status));
        if epoch > was && cluster["primary"].is_string() {
            Ok(())
        } else {
            Err(format!("epoch {epoch}, was {was}: {cluster}"))
        }
    });
    shop.orders_go_on(SERVED);
    turn.note(&format!(
        "orders go on {:.1} s after the server was stopped; longest pause {} ms",
        began.elapsed().as_secs_f64(),
        longest_pause_ms(&shop)
    ));
    // It was killed while it stood still; waking it changes nothing.
    server.signal(Signal::CONT);
    let after = shop.is_well_again();
    assert_ne!(Shop::primary(&after), primary);
    assert_eq!(Shop::epoch(&after), was + 1, "nothing else happened");
    assert!(!server.lives(), "the server that stood still is left");
    assert_eq!(Shop::members(&after, "replica").len(), 2);
    let why = shop.cell.run(&["why", "shop-db"]).expect(0);
    why.prints("answered no read for");
}

#[test]
fn without_anybody_who_decides_the_primary_serves_on() {
    let turn = begin();
    let shop = Shop::up();
    let before = shop.is_well_again();
    let controller = before.process("controller");
    controller.signal(Signal::STOP);
    // Nobody renews the primary's lease now but its replicas, by what they acknowledge.
    std::thread::sleep(LONG);
    controller.signal(Signal::CONT);
    let after = shop.cell.await_well(WELL);
    shop.orders_go_on(SERVED);
    let pause = longest_pause_ms(&shop);
    turn.note(&format!(
        "controller stopped for {LONG:?}: longest pause {pause} ms"
    ));
    assert!(pause < NO_OUTAGE_MS, "customers had to wait for {pause} ms");
    assert_eq!(Shop::epoch(&after), Shop::epoch(&before));
    let (primary, server) = (
        Shop::primary(&before),
        Shop::server(&before, &Shop::primary(&before)),
    );
    assert_eq!(Shop::server(&after, &primary), server);
    shop.orders_are_kept();
}
