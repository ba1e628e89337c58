//! From what rules say of tensors to what is wished of a draft's weights, given the devices there are.

use super::{Offer, PlaceError, Tier};
use ashlar_arch::Leaf;
use ashlar_recipe::{Device, Place};

/// What is asked for one weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Index of the device that must hold it; `None` for whichever has room.
    pub device: Option<usize>,
    /// Where it lies on the host; `None` for in memory if there is room.
    pub tier: Option<Tier>,
    /// Whether it is to be on accelerators as far as there is room, and take turns there if there is not enough.
    pub cached: bool,
    /// The accelerator whose slots it is to take turns in, where a rule names one.
    pub slots_on: Option<usize>,
    /// Who said so.
    pub by: Option<String>,
}

/// Wishes of all weights. The first offer is the host; `home` is where goes what no rule places.
///
/// # Errors
/// [`PlaceError::Rule`] for a device that is not offered, or a tier that a device does not have.
pub fn wishes(
    leaves: &[Leaf],
    places: Option<&[Place]>,
    offers: &[Offer],
    home: Option<Device>,
) -> Result<Vec<Wish>, PlaceError> {
    let home = home.map(|device| find(offers, device)).transpose()?;
    let none = Place::default();
    let mut all = Vec::with_capacity(leaves.len());
    for (i, leaf) in leaves.iter().enumerate() {
        let place = places.and_then(|p| p.get(i)).unwrap_or(&none);
        let wish = one(place, offers, home).map_err(|what| {
            let by = place.by.clone().unwrap_or_default();
            PlaceError::Rule { tensor: leaf.name.clone(), by, what }
        })?;
        all.push(wish);
    }
    Ok(all)
}

fn find(offers: &[Offer], device: Device) -> Result<usize, PlaceError> {
    offers.iter().position(|o| o.device == device).ok_or(PlaceError::NotOffered { device })
}

fn one(place: &Place, offers: &[Offer], home: Option<usize>) -> Result<Wish, String> {
    let device = match place.device {
        Some(device) => Some(find(offers, device).map_err(|e| e.to_string())?),
        None => None,
    };
    let on_accelerator = device.and_then(|d| offers.get(d)).map(|o| o.device.is_accelerator());
    let accelerator = || {
        let first = offers.iter().position(|o| o.device.is_accelerator());
        first.ok_or_else(|| {
            "`tier: vram` is memory of an accelerator, and there is none; name one (--device cuda:0), or use another tier"
                .to_owned()
        })
    };
    let (device, tier) = match (place.tier, on_accelerator) {
        (None, _) => (device.or(home), None),
        (Some("vram"), Some(false)) => {
            return Err("`tier: vram` is memory of an accelerator, and `device: cpu` is none".into());
        }
        (Some("vram"), Some(true)) => (device, None),
        (Some("vram"), None) => (Some(accelerator()?), None),
        (Some(tier @ ("ram" | "nvme")), Some(true)) => {
            return Err(format!(
                "`tier: {tier}` is memory of the host; what an accelerator computes with lies in its own (`tier: vram`)"
            ));
        }
        (Some("ram"), _) => (Some(device.unwrap_or(0)), Some(Tier::Ram)),
        (Some("nvme"), _) => (Some(device.unwrap_or(0)), Some(Tier::Nvme)),
        // In the host's memory or behind it, and on accelerators as far as there is room.
        (Some(_), Some(true)) => (None, None),
        (Some(_), _) => (device, None),
    };
    let cached = place.tier == Some("cached") && on_accelerator != Some(false);
    let slots_on = place.device.filter(|_| cached).map(|d| find(offers, d)).transpose().map_err(|e| e.to_string())?;
    Ok(Wish { device, tier, cached, slots_on, by: place.by.clone() })
}
