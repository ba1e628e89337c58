//! From options to a placement: the rules of a file, of a pack or of nobody; the devices they speak of; what these may
//! hold.

use super::{Offer, PlaceError, Placement, Wanted, grown, nearest, place};
use crate::program::{Draft, Sizes};
use crate::{Kv, OpenOptions, RuntimeError, devices, model};
use ashlar_arch::{Leaf, Mixer, ModelSpec};
use ashlar_recipe::{Device, Hardware, Place, Recipe, Resolved};
use std::collections::BTreeSet;

/// Memory that the host's system and programs keep: this share, at least this much.
const HOST_SHARE: u64 = 12;
const HOST_LEAST: u64 = 4 << 30;
/// Memory of an accelerator that its driver and other programs take: this share, and this much.
const CARD_SHARE: u64 = 33;
const CARD_LEAST: u64 = 768 << 20;

/// A placement as it was given: a file, one that comes with the program, or what a pack carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementText {
    /// What messages call it.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// A placement and what it was made of.
#[derive(Debug)]
pub struct Planned {
    /// The program with its sizes.
    pub draft: Draft,
    /// Where everything goes.
    pub placement: Placement,
    /// The machine it is made for, where the rules say.
    pub hardware: Option<Hardware>,
    /// Whether rules or the user asked for more than fits, so that it is only the nearest that does.
    pub misfit: Option<PlaceError>,
}

/// Places a model of which only shapes and sizes are known, without looking for devices. Where it does not fit, the result
/// is the nearest placement that does, and says so.
///
/// # Errors
/// [`RuntimeError::Recipe`], [`RuntimeError::Place`] for rules that cannot be, or where nothing fits.
pub fn plan(
    spec: &ModelSpec,
    bytes: &dyn Fn(&str) -> Option<u64>,
    options: &OpenOptions,
) -> Result<Planned, RuntimeError> {
    let request = Request::new(options, None)?;
    let (mut misfit, mut first) = (None, true);
    let (draft, placement) = grown(spec, request.sizes(spec, options)?, request.grows(options), &mut |draft| {
        let ready = Ready::new(&request, draft, bytes, &|_| Ok(None))?;
        let wanted = ready.wanted(draft, &request);
        let placement = match place(&wanted) {
            Ok(placement) => placement,
            // A larger chunk is no reason to place anything elsewhere.
            Err(found @ PlaceError::Misfit(_)) if first => match nearest(&wanted) {
                Ok(placement) => {
                    misfit = Some(found);
                    placement
                }
                Err(_) => return Err(found.into()),
            },
            Err(error) => return Err(error.into()),
        };
        first = false;
        Ok(ready.told(placement))
    })?;
    Ok(Planned { placement, misfit, hardware: request.recipe.as_ref().and_then(Recipe::hardware), draft })
}

/// Options, read.
pub(crate) struct Request {
    /// What messages call the placement; nothing if there is none.
    name: String,
    pub recipe: Option<Recipe>,
    /// `--device`, unless it is `auto`.
    device: Option<Device>,
    vram_limit: Option<u64>,
    /// The most that the host may hold; what is beyond stays on disk.
    pub ram_limit: Option<u64>,
}

impl Request {
    /// `packed`: the placement that a pack carries, which counts if the user says nothing else.
    ///
    /// # Errors
    /// [`RuntimeError::Option`] for an unknown device, [`RuntimeError::Recipe`] for a placement that cannot be read.
    pub fn new(options: &OpenOptions, packed: Option<&PlacementText>) -> Result<Self, RuntimeError> {
        let device = devices::device_named(&options.device)?;
        let text = options.placement.as_ref().or(packed.filter(|_| device.is_none()));
        let recipe = text.map(|t| Recipe::parse(&t.text, &t.name)).transpose()?;
        let name = text.map(|t| t.name.clone()).unwrap_or_default();
        Ok(Self { name, recipe, device, vram_limit: options.vram_limit, ram_limit: options.ram_limit })
    }

    /// How much the program must hold: as asked, else as a resolved placement says.
    ///
    /// # Errors
    /// [`RuntimeError::Option`].
    pub fn sizes(&self, spec: &ModelSpec, options: &OpenOptions) -> Result<Sizes, RuntimeError> {
        let resolved = self.recipe.as_ref().and_then(Recipe::resolved);
        let context = options.context.or(resolved.map(|r| r.context));
        let kv = options.kv.or(resolved.and_then(|r| Kv::named(&r.kv)));
        let chunk = resolved.filter(|_| options.larger_chunks).map_or(options.chunk, |r| r.chunk);
        let reference = self.recipe.is_none() && self.device.is_some_and(|d| d.kind == "reference");
        let has_native = spec.layers.iter().any(|layer| matches!(layer.attn, Mixer::Compressed(_)));
        let kv = devices::kv_format(if reference { "reference" } else { "cpu" }, kv, has_native)?;
        model::sizes(spec, &OpenOptions { context, chunk, ..options.clone() }, kv)
    }

    /// Whether chunks may be larger than asked for; those of a resolved placement are what they are.
    pub fn grows(&self, options: &OpenOptions) -> bool {
        options.larger_chunks && self.recipe.as_ref().is_none_or(|recipe| recipe.resolved().is_none())
    }

    /// Where the model is to be.
    ///
    /// # Errors
    /// [`RuntimeError::Recipe`], [`RuntimeError::Place`]; what `memory` says of a device that is not there.
    pub fn place(
        &self,
        draft: &Draft,
        bytes: &dyn Fn(&str) -> Option<u64>,
        memory: &dyn Fn(Device) -> Result<Option<u64>, RuntimeError>,
    ) -> Result<Placement, RuntimeError> {
        let mut ready = Ready::new(self, draft, bytes, memory)?;
        ready.look(self, &devices::accelerators(), memory);
        let placement = place(&ready.wanted(draft, self))?;
        if let Some(resolved) = self.recipe.as_ref().and_then(Recipe::resolved) {
            let (was, now) = (unbounded(resolved), unbounded(&placement.resolved(draft)));
            if was != now {
                return Err(RuntimeError::Resolved { was: was.text(), now: now.text() });
            }
        }
        Ok(ready.told(placement))
    }

    /// The accelerators that rules and options speak of.
    fn accelerators(&self, places: Option<&[Place]>) -> Vec<Device> {
        let named = places.unwrap_or_default().iter().filter_map(|p| p.device);
        let mut all: BTreeSet<Device> = named.chain(self.device).filter(Device::is_accelerator).collect();
        let wanted = self.hardware().filter(|_| self.device.is_none() && all.is_empty());
        all.extend((0..wanted.map_or(0, |h| h.gpus)).map(|i| Device { kind: devices::ACCELERATOR, index: Some(i) }));
        all.into_iter().collect()
    }

    /// Whether anything says how much memory the host has.
    pub fn bounds_host(&self) -> bool {
        self.ram_limit.is_some() || self.budget(Device::CPU, None).is_some()
    }

    /// Bytes of disk that weights may stay on. Who limits memory means them to be read as they are used.
    fn disk(&self) -> u64 {
        let limited = self.ram_limit.map_or(0, |_| u64::MAX);
        self.hardware().map_or(limited, |h| if h.nvme > 0 { h.nvme } else { limited })
    }

    /// The machine that a placement describes, and what it is called.
    pub fn machine(&self) -> (String, Option<Hardware>) {
        (self.name.clone(), self.hardware())
    }

    fn hardware(&self) -> Option<Hardware> {
        self.recipe.as_ref().and_then(Recipe::hardware)
    }

    /// The most that a device may hold, of what it has.
    fn budget(&self, device: Device, has: Option<u64>) -> Option<u64> {
        let resolved = self.recipe.as_ref().and_then(Recipe::resolved).map(|r| &r.devices);
        let resolved = resolved.into_iter().flatten().find(|s| s.device == device.to_string());
        let described = match self.hardware() {
            _ if resolved.is_some() => resolved.and_then(|s| s.budget),
            Some(h) if device.is_accelerator() && h.unified => Some(usable_ram(h.ram)),
            Some(h) if device.is_accelerator() && h.vram > 0 => Some(usable_vram(h.vram)),
            Some(h) if !device.is_accelerator() => Some(usable_ram(h.ram)),
            _ => None,
        };
        let limit = if device.is_accelerator() { self.vram_limit } else { self.ram_limit };
        [described, limit, has].into_iter().flatten().min()
    }
}

/// What a placement came to, whatever its devices might have held besides.
fn unbounded(resolved: &Resolved) -> Resolved {
    let mut all = resolved.clone();
    all.devices.iter_mut().for_each(|share| share.budget = None);
    all
}

fn usable_ram(bytes: u64) -> u64 {
    bytes.saturating_sub(HOST_LEAST.max(bytes / HOST_SHARE))
}

fn usable_vram(bytes: u64) -> u64 {
    bytes.saturating_sub(bytes / CARD_SHARE).saturating_sub(CARD_LEAST)
}

/// A request against one model.
struct Ready {
    bytes: Vec<u64>,
    places: Option<Vec<Place>>,
    offers: Vec<Offer>,
    notes: Vec<String>,
}

impl Ready {
    fn new(
        request: &Request,
        draft: &Draft,
        bytes: &dyn Fn(&str) -> Option<u64>,
        memory: &dyn Fn(Device) -> Result<Option<u64>, RuntimeError>,
    ) -> Result<Self, RuntimeError> {
        let of = |leaf: &Leaf| bytes(&leaf.name).ok_or_else(|| RuntimeError::Missing(leaf.name.clone()));
        let bytes = draft.leaves.iter().map(of).collect::<Result<_, _>>()?;
        let leaves: Vec<&Leaf> = draft.leaves.iter().collect();
        let placed = request.recipe.as_ref().map(|r| r.place(&leaves, None)).transpose()?;
        let (places, notes) = placed.map_or((None, Vec::new()), |p| (Some(p.list), p.notes));
        let mut offers = Vec::new();
        let host = match request.device {
            Some(device) if !device.is_accelerator() => device,
            _ => Device::CPU,
        };
        let named = places.iter().flatten().filter_map(|p| p.device).filter(|d| !d.is_accelerator());
        let hosts: BTreeSet<Device> = named.filter(|d| *d != host).collect();
        for device in [host].into_iter().chain(hosts).chain(request.accelerators(places.as_deref())) {
            offers.push(Offer { device, budget: request.budget(device, memory(device)?) });
        }
        Ok(Self { bytes, places, offers, notes })
    }

    /// Adds the accelerators `found` on this machine, where neither options nor rules nor a described machine speak of devices.
    /// One that cannot be used is left out, and the user told.
    fn look(
        &mut self,
        request: &Request,
        found: &[Device],
        memory: &dyn Fn(Device) -> Result<Option<u64>, RuntimeError>,
    ) {
        let fixed = request.recipe.as_ref().is_some_and(|r| r.hardware().is_some() || r.resolved().is_some());
        if fixed || request.device.is_some() || self.offers.iter().any(|o| o.device.is_accelerator()) {
            return;
        }
        for &device in found {
            match memory(device) {
                Ok(has) => self.offers.push(Offer { device, budget: request.budget(device, has) }),
                Err(error) => self.notes.push(format!("{error}; going on without it")),
            }
        }
    }

    fn wanted<'a>(&'a self, draft: &'a Draft, request: &Request) -> Wanted<'a> {
        Wanted {
            draft,
            bytes: &self.bytes,
            places: self.places.as_deref(),
            home: request.device.filter(|_| self.places.is_none()),
            offers: &self.offers,
            disk: request.disk(),
            unified: request.hardware().is_some_and(|h| h.unified),
        }
    }

    /// The placement with what the user should know of the request.
    fn told(self, mut placement: Placement) -> Placement {
        placement.notes.extend(self.notes);
        for share in &placement.devices {
            let Some(slots) = share.expert_slots else { continue };
            let lent = match slots.lent {
                0 => String::new(),
                lent => format!(" ({lent} of them until keys and values need their memory)"),
            };
            placement.notes.push(format!(
                "{} experts take turns in {} slots{lent} of {}, those used lately; the host computes the others where they lie",
                slots.experts, slots.count, share.offer.device
            ));
            if slots.count < slots.uses {
                placement.notes.push(format!(
                    "{} slots are fewer than the {} experts that one token uses, so that few uses will find theirs there; fewer bits \
                     for what every token reads, a shorter --context or --kv q8 make room for more",
                    slots.count, slots.uses
                ));
            }
        }
        placement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(options: &OpenOptions, found: usize) -> (Vec<String>, Vec<String>) {
        let request = Request::new(options, None).unwrap();
        let offers = vec![Offer { device: request.device.unwrap_or(Device::CPU), budget: None }];
        let mut ready = Ready { bytes: Vec::new(), places: None, offers, notes: Vec::new() };
        let found: Vec<Device> = (0..found).map(|i| Device { kind: devices::ACCELERATOR, index: Some(i) }).collect();
        // The second one cannot be used.
        let memory = |device: Device| match device.index {
            Some(1) => Err(RuntimeError::Device { device: device.to_string(), why: "too old".into() }),
            _ => Ok(Some(1 << 30)),
        };
        ready.look(&request, &found, &memory);
        (ready.offers.iter().map(|o| o.device.to_string()).collect(), ready.notes)
    }

    #[test]
    fn auto_takes_the_accelerators_that_are_there_and_tells_of_those_it_cannot_use() {
        let (devices, notes) = offered(&OpenOptions::default(), 3);
        assert_eq!(devices, ["cpu", "cuda:0", "cuda:2"]);
        assert!(notes.len() == 1 && notes[0].contains("too old") && notes[0].contains("without it"), "{notes:?}");
        assert_eq!(offered(&OpenOptions::default(), 0).0, ["cpu"]);
    }

    #[test]
    fn who_names_a_device_or_describes_a_machine_gets_that() {
        let cpu = OpenOptions { device: "cpu".into(), ..OpenOptions::default() };
        assert_eq!(offered(&cpu, 3).0, ["cpu"]);
        let text = "version: 1\nhardware: {ram: 64GiB}\n".to_owned();
        let described = PlacementText { name: "machine".into(), text };
        let described = OpenOptions { placement: Some(described), ..OpenOptions::default() };
        assert_eq!(offered(&described, 3).0, ["cpu"]);
    }
}
