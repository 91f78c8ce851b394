//! Tokens that nobody signed so: a pod's own, altered, and those of others, made up.
use anyhow::{Result, ensure};
use pod_identity_tests::{
    client::Client,
    token::{Forgery, Issuer},
};

use crate::{
    attack::{
        ANSWER_DEADLINE, Attack, CONTROL, EKS_AUTH_REFUSED, EXPIRED, Expected, FOREIGN_TOKEN, MALFORMED, NO_POD_UID,
        NO_TOKEN, NOT_YET_VALID, Outcome, POD_LIMIT, WRONG_AUDIENCE, tries,
    },
    scene::{Scene, as_an_sdk, granted},
};

/// Only a signature shows that it is wrong: EKS Auth is asked as often as the pod's allowance lasts.
const BY_EKS_AUTH: Expected = Expected::Refused(&[EKS_AUTH_REFUSED, POD_LIMIT, ANSWER_DEADLINE]);

/// Calls to EKS Auth that a row may cost: its allowance is six a minute.
const CALLS: u64 = 6;

pub(crate) const ATTACKS: [Attack; 9] = [
    Attack {
        name: "tokens::random",
        attacker: "a pod",
        capability: "—",
        action: "presents its own and another's token, garbled anew each time, and random bytes",
        expected: Expected::Refused(&[
            MALFORMED,
            FOREIGN_TOKEN,
            NO_TOKEN,
            EKS_AUTH_REFUSED,
            POD_LIMIT,
            ANSWER_DEADLINE,
            EXPIRED,
            NOT_YET_VALID,
            WRONG_AUDIENCE,
            NO_POD_UID,
        ]),
        run: random,
    },
    Attack {
        name: "tokens::altered",
        attacker: "a pod",
        capability: "—",
        action: "presents its own token with a claim changed after it was signed",
        expected: BY_EKS_AUTH,
        run: |attack| forged(attack, Forgery::ChangedClaims, Whose::Own),
    },
    Attack {
        name: "tokens::self-signed",
        attacker: "a pod",
        capability: "—",
        action: "signs its own claims with a key of its own under the issuer's key id",
        expected: BY_EKS_AUTH,
        run: |attack| forged(attack, Forgery::OtherKey, Whose::Own),
    },
    Attack {
        name: "tokens::unsigned",
        attacker: "a pod",
        capability: "—",
        action: "presents its own claims unsigned (alg none)",
        expected: Expected::Refused(&[MALFORMED]),
        run: |attack| forged(attack, Forgery::AlgorithmNone, Whose::Own),
    },
    Attack {
        name: "tokens::hs256",
        attacker: "a pod",
        capability: "—",
        action: "signs its own claims with the issuer's public key as a shared secret (HS256)",
        expected: Expected::Refused(&[MALFORMED]),
        run: |attack| forged(attack, Forgery::SharedSecret, Whose::Own),
    },
    Attack {
        name: "tokens::wrong-audience",
        attacker: "a pod",
        capability: "—",
        action: "presents a token of its own for another audience",
        expected: Expected::Refused(&[WRONG_AUDIENCE]),
        run: |attack| forged(attack, Forgery::WrongAudience, Whose::Own),
    },
    Attack {
        name: "tokens::expired",
        attacker: "a pod",
        capability: "—",
        action: "presents a token of its own that has expired",
        expected: Expected::Refused(&[EXPIRED]),
        run: |attack| forged(attack, Forgery::Expired, Whose::Own),
    },
    Attack {
        name: "tokens::another-pods-uid",
        attacker: "a pod",
        capability: "—",
        action: "signs another pod's claims with a key of its own",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| forged(attack, Forgery::OtherKey, Whose::Victims),
    },
    Attack {
        name: "tokens::another-pods-uid-unsigned",
        attacker: "a pod",
        capability: "—",
        action: "presents another pod's claims unsigned (alg none)",
        expected: Expected::Refused(&[MALFORMED]),
        run: |attack| forged(attack, Forgery::AlgorithmNone, Whose::Victims),
    },
];

/// Whose claims are forged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own,
    Victims,
}

fn forged(attack: &Attack, forgery: Forgery, whose: Whose) -> Result<Outcome> {
    let scene = Scene::new()?;
    let subject = if whose == Whose::Own { scene.thief.subject() } else { scene.victim.subject() };
    let client = Client::with_token(&Issuer::of_this_process()?.forge(subject, forgery)?);
    presented(attack, &scene, &[client.tries(tries())])
}

fn random(attack: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let half = tries() / 2;
    presented(attack, &scene, &[scene.own().tries(half).garbled(1), scene.stolen().tries(half).garbled(2)])
}

/// The thief presents them; its own token is good before and after.
fn presented(attack: &Attack, scene: &Scene, clients: &[Client]) -> Result<Outcome> {
    let agent = scene.agent()?;
    as_an_sdk(&scene.thief)?;
    let own = scene.thief.tally(&scene.own().tries(CONTROL))?;
    let calls = scene.node.eks_auth().counters()?.calls;
    let outcome = attack.carry_out(&agent, &[scene.thief.uid()], || {
        let mut tally = scene.thief.tally(clients.first().unwrap_or(&Client::new()))?;
        for client in clients.iter().skip(1) {
            tally.merge(scene.thief.tally(client)?);
        }
        Ok(tally)
    })?;
    let asked = scene.node.eks_auth().counters()?.calls - calls;
    let Expected::Refused(refusals) = attack.expected else { anyhow::bail!("not a refusal") };
    let may_ask = refusals.contains(&EKS_AUTH_REFUSED);
    // A full run takes more than a minute.
    ensure!(
        asked <= if may_ask { CALLS * (1 + outcome.total / 20_000) } else { 0 },
        "EKS Auth was asked {asked} times"
    );
    let after = as_an_sdk(&scene.thief)?.access_key_id();
    ensure!(own.access_keys.contains(&after), "the forgeries cost the pod its credentials");
    let control = format!("{}; EKS Auth was asked {asked} times meanwhile", granted(&own, "its own token")?);
    Ok(Outcome { control, ..outcome })
}
