//! Who is away, and what must not follow from it.

use super::*;

#[test]
fn a_controller_that_stood_still_calls_no_machine_lost() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status();
    let controller = before.process("controller");
    controller.signal(rustix::process::Signal::STOP);
    // Longer than a silence after which a machine is lost.
    std::thread::sleep(Duration::from_secs(8));
    controller.signal(rustix::process::Signal::CONT);
    let after = cell.await_well(SOON);
    // Several looks at the machines later.
    std::thread::sleep(Duration::from_secs(2));
    for machine in ["m1", "m2", "m3"] {
        assert!(!told(&cell, machine, "lost"), "{machine} is called lost");
        assert_eq!(tasks_on(&after, machine), tasks_on(&before, machine));
    }
    one_of_each(&cell);
}

#[test]
fn a_task_that_has_finished_is_not_run_again_when_its_machine_goes() {
    let _turn = begin();
    let batch = sleeper("batch", 1)
        .replace("sleep 100000 & exec sleep 100001", "sleep 1")
        .replace("grace", "restart = \"on-failure\",\n    grace");
    let cell = Cell::up(&(plain() + &batch));
    wait_for("it ends", SOON, || {
        match told(&cell, "batch-0", "ended on") {
            true => Ok(()),
            false => Err("it runs".to_owned()),
        }
    });
    let machine = machine_of(&cell.status(), "batch-0");
    cell.run(&["chaos", "machine", &machine, "--kill"])
        .expect(0);
    await_state(&cell, &machine, "lost", LOST);
    cell.await_well(LOST);
    cell.run(&["chaos", "machine", &machine, "--return"])
        .expect(0);
    await_state(&cell, &machine, "ready", SOON);
    cell.run_within(&["drain", &machine], Duration::from_secs(60))
        .expect(0);
    cell.status().process("controller").kill();
    let after = cell.await_well(SOON);
    assert_eq!(tasks_on(&after, &machine), Vec::<String>::new());
    let events = cell.events();
    let runs = events.iter().filter(|event| {
        let text = event["text"].as_str().unwrap_or_default();
        event["about"] == "batch-0" && text.starts_with("runs on")
    });
    assert_eq!(runs.count(), 1);
}
