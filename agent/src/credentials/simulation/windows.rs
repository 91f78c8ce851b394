//! Each SDK for three days: its fetches are counted beforehand, and none brings credentials that it would ask for again.
use std::time::Duration;

use super::{
    DAY, FIFTY_NINE_MINUTES, LATENCY, SECOND, SIX_HOURS,
    eks_auth::EksAuth,
    fleet::{Fleet, PodSpec},
    formula::calls_of_all,
    node::{Ours, limits, run},
    sdks::{SDKS, Sdk},
};

/// When an SDK asks: for the first time after a second, and then when its rule says, by the expiration of what the agent
/// had last fetched. `calls` are when the agent's calls begin.
fn fetches(pod: &PodSpec, sdk: Sdk, calls: &[Duration]) -> usize {
    let (mut at, mut fetches) = (pod.first_ask().unwrap(), 0);
    while at < pod.ends {
        fetches += 1;
        let held = calls.iter().rfind(|call| **call + LATENCY <= at).unwrap();
        at += sdk.asks_after(*held + pod.life - at);
    }
    fetches
}

/// What can be said without the seed: credentials have between half of their life and all of it left when they are served.
fn bounds(pod: &PodSpec, sdk: Sdk) -> (u128, u128) {
    let whole = |left: Duration| (pod.ends - pod.born).as_nanos() / sdk.asks_after(left).as_nanos();
    let fewest = [pod.life, pod.life / 2].map(whole).into_iter().min().unwrap();
    let most = [pod.life, pod.life / 2 - SECOND].map(whole).into_iter().max().unwrap();
    (fewest, most + 1)
}

#[tokio::test(start_paused = true)]
async fn no_sdk_asks_again_at_its_next_signing_and_each_asks_as_often_as_its_rule_says() {
    for life in [SIX_HOURS, FIFTY_NINE_MINUTES] {
        let pod = |(number, sdk)| {
            let born = Duration::from_secs(10 * number as u64);
            PodSpec::new(number, 3 * DAY).born_at(born).life(life).asks(sdk, SECOND)
        };
        let fleet = Fleet::new(SDKS.into_iter().enumerate().map(pod));
        let eks_auth = EksAuth::new(&fleet, LATENCY);
        let seen = run(&Ours::new(&eks_auth, limits(1)), &fleet).await;
        let calls = calls_of_all(fleet.pods.values(), &limits(1), LATENCY);
        for (uid, pod) in &fleet.pods {
            let (seen, (sdk, _)) = (&seen[uid], pod.asks.unwrap());
            let (expected, (fewest, most)) = (fetches(pod, sdk, &calls[uid]), bounds(pod, sdk));
            println!(
                "{sdk:?}, {} min: {} fetches ({fewest} to {most}), {} calls",
                life.as_secs() / 60,
                seen.served,
                calls[uid].len()
            );
            assert_eq!(usize::try_from(seen.served).unwrap(), expected, "{sdk:?} with {life:?}");
            assert!((fewest..=most).contains(&u128::from(seen.served)), "{sdk:?} with {life:?}: {}", seen.served);
            assert_eq!((seen.failed, seen.multiplied, seen.short, seen.expired), (0, 0, 0, 0), "{sdk:?} with {life:?}");
            assert_eq!(eks_auth.calls(*uid).len(), calls[uid].len(), "{sdk:?} with {life:?}");
        }
    }
}

/// Credentials that an SDK gets inside its window are asked for at every signing: what the rule above would catch.
#[test]
fn inside_its_window_an_sdk_multiplies() {
    let minutes = Duration::from_mins;
    for (sdk, window) in [(Sdk::Botocore, 15), (Sdk::DotNet, 15), (Sdk::Java, 15), (Sdk::Go, 5), (Sdk::JavaScript, 5)] {
        assert!(sdk.multiplies(minutes(window)) && !sdk.multiplies(minutes(window + 1)), "{sdk:?}");
        assert_eq!(sdk.asks_after(minutes(window - 1)), minutes(1), "{sdk:?}");
    }
    assert_eq!(Sdk::Java.asks_after(minutes(90)), minutes(30));
    assert_eq!(Sdk::Java.asks_after(minutes(89)), minutes(74));
    assert_eq!((Sdk::Cpp.asks_after(minutes(1)), Sdk::Rust.asks_after(minutes(1))), (minutes(5), minutes(1)));
}
