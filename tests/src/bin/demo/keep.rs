//! `--keep`: everything goes on, and the pods can be entered.
use std::{
    fmt::Write as _,
    fs,
    io::stdin,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use pod_identity_tests::pod::Pod;

use crate::{scene::Scene, screen::Screen};

/// Between two looks at whether it shall end.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Says how to enter the pods, and waits for Enter or a signal.
pub(crate) fn wait(screen: &Screen, scene: &Scene) -> Result<()> {
    screen.heading("Kept running");
    for pod in [&scene.reader, &scene.stranger] {
        let script = entrance(scene, pod)?;
        screen.value(&pod.subject().service_account, &format!("enter the pod with  {}", script.display()));
    }
    screen.value("node", &format!("nsenter --net=/run/netns/{}", scene.node.netns().name()));
    screen.value("agent's log", &scene.agent.run_dir().join("log").display().to_string());
    screen.value(
        "its metrics",
        &format!("curl --unix-socket {}/admin.sock http://agent/metrics", scene.agent.run_dir().display()),
    );
    println!("\n  Enter or SIGTERM ends it.");

    let enter = Arc::new(AtomicBool::new(false));
    let pressed = Arc::clone(&enter);
    // Ends with the process: reading a terminal cannot be called off.
    thread::spawn(move || {
        // Without a terminal there is nobody to press Enter: only a signal ends it.
        let pressed_enter = stdin().read_line(&mut String::new()).is_ok_and(|length| length > 0);
        pressed.store(pressed_enter, Ordering::Relaxed);
    });
    while !enter.load(Ordering::Relaxed) && screen.go_on().is_ok() {
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// A script that becomes a shell in the pod, with what EKS injects.
fn entrance(scene: &Scene, pod: &Pod) -> Result<PathBuf> {
    let application = scene.application(pod)?;
    let command = application.command("sh".as_ref())?;
    let mut text = "#!/bin/sh\nexec env -i TERM=\"$TERM\"".to_owned();
    let mut words: Vec<String> =
        application.environment().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    words.push(format!("PS1={} $ ", pod.subject().pod_name));
    words.push(command.get_program().to_str().context("a path that is no text")?.to_owned());
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    for word in words {
        write!(text, " '{}'", word.replace('\'', "'\\''"))?;
    }
    text.push('\n');
    let script = scene.node.dir().join(format!("enter-{}", pod.subject().service_account));
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}
