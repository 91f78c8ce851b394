//! The contract's rows about tokens, and that no forged one reaches EKS Auth where the agent can tell by itself.
use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    client::Client,
    time,
    token::{AUDIENCE, Claims, Forgery, Issuer},
};
use serde_json::{Value, json};

use crate::common::{must_be_granted, must_refuse, refusal, served};

#[test]
fn without_a_token_nothing_is_served() -> Result<()> {
    let served = served()?;
    let expected = refusal(400, "no_token", "Service account token cannot be empty");
    for client in [Client::new(), Client::new().header("Authorization", "")] {
        must_refuse(&served.agent, expected, || served.pod.ask_once(&client))?;
    }
    ensure!(served.node.eks_auth().counters()?.calls == 0);
    Ok(())
}

#[test]
fn what_is_no_token_is_refused_without_asking_eks_auth() -> Result<()> {
    let served = served()?;
    let parsed = "Service account token cannot be parsed: ";
    for (forgery, reason, message) in [
        (Forgery::AlgorithmNone, "malformed_token", "signing method none"),
        (Forgery::SharedSecret, "malformed_token", "symmetric signing methods"),
        (Forgery::NoAlgorithm, "malformed_token", "names no signing method"),
        (Forgery::TwoSegments, "malformed_token", "three parts"),
        (Forgery::BadBase64, "malformed_token", "header is not base64url"),
        (Forgery::BadJson, "malformed_token", "payload is not one JSON object"),
        (Forgery::ClaimOfWrongType, "malformed_token", "claim exp has the wrong type"),
        (Forgery::Bearer, "malformed_token", "without the prefix \"Bearer \""),
        (Forgery::Expired, "token_expired", "failed basic claim validations: token is expired"),
        (Forgery::NotYetValid, "token_not_yet_valid", "failed basic claim validations: token is not valid yet"),
        (Forgery::WrongAudience, "wrong_audience", "audience pods.eks.amazonaws.com"),
        (Forgery::NoPodUid, "no_pod_uid", "failed to get pod uid from service account token: "),
    ] {
        let client = Client::with_token(&Issuer::of_this_process()?.forge(served.pod.subject(), forgery)?);
        let refused = must_refuse(&served.agent, refusal(400, reason, message), || served.pod.ask_once(&client))
            .with_context(|| format!("{forgery:?}"))?;
        ensure!(reason != "malformed_token" || refused.member("message").starts_with(parsed), "{refused:?}");
    }
    ensure!(served.node.eks_auth().counters()?.calls == 0, "EKS Auth was asked");
    served.pod.must_get_credentials().map(|_| ())
}

#[test]
fn forgeries_that_only_a_signature_shows_are_refused_by_eks_auth() -> Result<()> {
    let served = served()?;
    for forgery in [Forgery::OtherKey, Forgery::ChangedClaims, Forgery::OtherIssuer] {
        // A pod each: a refused token makes its pod wait.
        let pod = served.node.pod("app")?;
        let client = Client::with_token(&Issuer::of_this_process()?.forge(pod.subject(), forgery)?);
        let expected = refusal(400, "eks_auth_refused", "(InvalidTokenException)");
        must_refuse(&served.agent, expected, || pod.ask_once(&client)).with_context(|| format!("{forgery:?}"))?;
    }
    Ok(())
}

#[test]
fn a_forged_token_costs_its_pod_no_valid_credentials() -> Result<()> {
    let served = served()?;
    let before = served.pod.must_get_credentials()?.access_key_id();
    let forged = Issuer::of_this_process()?.forge(served.pod.subject(), Forgery::OtherKey)?;
    let refused = served.pod.ask_once(&Client::with_token(&forged))?;
    ensure!(refused.status != Some(200), "credentials for a forged token: {refused:?}");
    ensure!(served.pod.must_get_credentials()?.access_key_id() == before, "the good token's credentials are gone");
    Ok(())
}

#[test]
fn the_audience_may_be_one_of_several_or_plain_text() -> Result<()> {
    let served = served()?;
    let issuer = Issuer::of_this_process()?;
    let claims = Claims::of(served.pod.subject());
    let several = issuer.sign(&claims.clone().with("aud", json!(["sts.amazonaws.com", AUDIENCE])))?;
    must_be_granted(&served.pod.ask_once(&Client::with_token(&several))?)?;
    // The stand-in reads arrays only, as the API server writes them; that it is asked shows that the agent took it.
    let plain = issuer.sign(&claims.with("aud", json!(AUDIENCE)))?;
    let other = served.node.eks_auth().counters()?.calls;
    let refused = served.pod.ask_once(&Client::with_token(&plain))?;
    ensure!(served.node.eks_auth().counters()?.calls == other + 1, "{refused:?}");
    Ok(())
}

#[test]
fn clocks_may_be_half_a_minute_apart() -> Result<()> {
    let served = served()?;
    let now = time::now();
    let cases: [(&str, u64, bool); 4] =
        [("exp", now - 15, true), ("exp", now - 45, false), ("nbf", now + 15, true), ("nbf", now + 45, false)];
    for (claim, value, asked) in cases {
        let pod = served.node.pod("app")?;
        let token = Issuer::of_this_process()?.sign(&Claims::of(pod.subject()).with(claim, Value::from(value)))?;
        let answer = pod.ask_once(&Client::with_token(&token))?;
        // EKS Auth has the last word on what lies within the leeway.
        ensure!(answer.status == Some(400), "{answer:?}");
        ensure!((served.node.eks_auth().calls_for(pod.uid())? == 1) == asked, "{claim} {value}: {answer:?}");
    }
    Ok(())
}
