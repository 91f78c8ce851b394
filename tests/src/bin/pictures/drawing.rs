//! The shipped dashboard, drawn: its panels with what Prometheus answers to their expressions, in a page of our own that
//! Chromium makes an image of. Nothing of Grafana's is used but the dashboard's own format.
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    node::Node,
    process::{binary, run},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::prometheus::Prometheus;

/// What draws the panels.
const PAGE: &str = include_str!("page.html");
/// Where the data goes.
const PLACE: &str = "null /* the data */";
/// What `$__rate_interval` is at a scrape each second: long enough for a curve that is no comb.
const RATE_INTERVAL: &str = "10s";
/// For Chromium, on a machine that is busy.
const DRAWS: Duration = Duration::from_mins(2);

/// Of the image, in pixels.
const WIDTH: u64 = 1480;
const ROW: u64 = 30;
const HEAD: u64 = 92;

/// Something that happened for a while, in seconds since the begin.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) what: &'static str,
}

/// A dashboard and the time it shows.
pub(crate) struct Drawing<'a> {
    pub(crate) dashboard: &'a Path,
    pub(crate) caption: &'a str,
    pub(crate) from: SystemTime,
    pub(crate) to: SystemTime,
    pub(crate) events: &'a [Event],
}

impl Drawing<'_> {
    /// Draws it, and says which panels show nothing.
    pub(crate) fn draw(
        &self,
        node: &Node,
        prometheus: &Prometheus<'_>,
        chromium: &Path,
        out: &Path,
    ) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.dashboard).with_context(|| self.dashboard.display().to_string())?;
        let mut dashboard: Value = serde_json::from_str(&text).context("the dashboard is no JSON")?;
        let panels = dashboard["panels"].as_array_mut().context("the dashboard has no panels")?;
        let (mut empty, mut rows) = (Vec::new(), 0);
        for panel in panels.iter_mut() {
            let bottom = |member: &str| panel["gridPos"][member].as_u64().context("a panel has no place");
            rows = rows.max(bottom("y")? + bottom("h")?);
            let series = self.series(panel, prometheus)?;
            if panel["type"] != "row" && series.iter().all(|series| series["values"] == json!([])) {
                empty.push(panel["title"].as_str().unwrap_or_default().to_owned());
            }
            panel["series"] = json!(series);
        }
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let data = json!({
            "title": dashboard["title"], "caption": self.caption, "panels": dashboard["panels"], "events": self.events,
            "from": seconds(self.from), "to": seconds(self.to), "row": ROW, "head": HEAD, "width": WIDTH,
        });
        ensure!(PAGE.matches(PLACE).count() == 1, "the page has no place for the data");
        let page = node.dir().join("page.html");
        // What could end the script early is no matter of ours, but of a label's value.
        fs::write(&page, PAGE.replace(PLACE, &data.to_string().replace("</", "<\\/")))?;
        photograph(node, chromium, &page, HEAD + rows * ROW, out)?;
        Ok(empty)
    }

    /// What Prometheus answers to a panel's expressions, each series with its name in the legend.
    fn series(&self, panel: &Value, prometheus: &Prometheus<'_>) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("a target has no expression")?;
            // What Grafana fills in.
            let expression = expression.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*");
            let found = prometheus.range(&expression, self.from, self.to)?;
            for series in found.as_array().into_iter().flatten() {
                let name = legend(target["legendFormat"].as_str().unwrap_or_default(), &series["metric"]);
                all.push(json!({"name": name, "values": series["values"]}));
            }
        }
        Ok(all)
    }
}

/// A legend with `{{label}}` filled in.
fn legend(format: &str, labels: &Value) -> String {
    let mut text = format.to_owned();
    for (label, value) in labels.as_object().into_iter().flatten() {
        text = text.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
    }
    text
}

/// In the node's namespace, which has no way out: the page is all there is.
fn photograph(node: &Node, chromium: &Path, page: &Path, height: u64, out: &Path) -> Result<()> {
    let chrome = |last: &[&str]| -> Result<_> {
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--netns").arg(node.netns().path()).arg("--").arg(chromium);
        // Its sandbox does not work for root; what it shows is the page above.
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
        ]);
        command.arg(format!("--window-size={WIDTH},{height}"));
        command.arg(format!("--user-data-dir={}", node.dir().join("chromium").display()));
        let output = run(command.args(last).arg(format!("file://{}", page.display())), DRAWS)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{} failed ({}):\n{said}", chromium.display(), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let drawn = chrome(&["--dump-dom"])?;
    ensure!(drawn.contains("<body data-drawn=\"whole\""), "the page was not drawn to its end");
    let picture = node.dir().join("picture.png");
    chrome(&[&format!("--screenshot={}", picture.display())])?;
    fs::copy(&picture, out).with_context(|| format!("write {}", out.display()))?;
    Ok(())
}
