//! `occlude report`: makes the page of a run again.

use crate::open::{self, Images};
use crate::pictures::Pictures;
use crate::report;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Make the HTML report of a run: curves, masks, feature maps, neighbours, clusters, settings, scores.
#[derive(Args)]
#[command(after_help = "Example:
  occlude report runs/quickstart      writes runs/quickstart/report.html")]
pub(crate) struct Report {
    /// Folder of a run.
    run: PathBuf,
}

impl Report {
    pub(crate) fn run(self) -> Result<()> {
        let opened = open::open(&self.run)?;
        let images = Images::open(&opened.run)?;
        let random = open::fresh(&opened.run, &opened.device)?;
        let (run, device) = (&opened.run, &opened.device);
        let pictures = Pictures { run, images: &images, device, method: &*opened.method, random: &*random };
        let summary = report::summary(&opened.dir, &opened.checkpoint)?;
        report::write(&opened.dir, &opened.config, &summary, &pictures)?;
        println!("{}", opened.dir.report_file().display());
        Ok(())
    }
}
