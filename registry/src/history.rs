//! The steps in which an image was built, as its configuration tells them.

use runtime_core::HistoryStep;

use crate::error::{Error, Result};
use crate::image::Parts;
use crate::index::Index;
use crate::store::Inner;

/// The steps of `image`, the newest first; blocking. Layers that the configuration does not tell of are steps, too.
pub(crate) fn history(store: &Inner, image: &str) -> Result<Vec<HistoryStep>> {
    let not_present = || Error::NotPresent(image.to_owned());
    let digest = Index::read(&store.paths)?.find(image)?.ok_or_else(not_present)?.digest.clone();
    let parts = Parts::read(&store.paths, &digest)?.ok_or_else(not_present)?;
    let mut layers = parts.manifest.layers.iter();
    let mut steps = Vec::new();
    for told in parts.config.history().iter().flatten() {
        let layer = if told.empty_layer() == Some(true) { None } else { layers.next() };
        steps.push(HistoryStep {
            created: told.created().clone(),
            created_by: told.created_by().clone(),
            comment: told.comment().clone(),
            layer: layer.map(|layer| layer.digest.clone()),
            size_bytes: layer.map_or(0, |layer| layer.size),
        });
    }
    steps.extend(layers.map(|layer| HistoryStep {
        created: None,
        created_by: None,
        comment: None,
        layer: Some(layer.digest.clone()),
        size_bytes: layer.size,
    }));
    steps.reverse();
    Ok(steps)
}
