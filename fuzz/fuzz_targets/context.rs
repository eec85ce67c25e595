//! The context of an interactive request gives at most 64 shapes. In pixels, the corners of their boxes are in order and
//! all numbers are finite. Thresholds are from 0 to 1.

#![no_main]

use std::sync::LazyLock;

use groundling::geometry::ImageSize;
use groundling::labeling::LabelingConfig;
use groundling::preannotation::interaction::{Interaction, control_thresholds, interaction};
use groundling::preannotation::protocol::ProtocolRequest;
use groundling::preannotation::smart_tools::segment_prompts;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

static CONFIG: LazyLock<LabelingConfig> = LazyLock::new(|| {
    LabelingConfig::parse(
        "<View><Image name='image' value='$image'/><Image name='other' value='$other'/>
         <TextArea name='prompt' toName='image'/><TextArea name='notes' toName='other'/>
         <Number name='box_threshold' toName='image' defaultValue='0.2'/>
         <Number name='text_threshold' toName='image'/><Rectangle name='roi' toName='image'/>
         <Labels name='l' toName='image'><Label value='Pot'/></Labels><Rectangle name='r' toName='image'/>
         <BrushLabels name='b' toName='other'><Label value='Bok Choi'/></BrushLabels></View>",
    )
    .expect("the labeling config is valid")
});

fuzz_target!(|json: &str| {
    let Ok(Value::Array(regions)) = serde_json::from_str(json) else {
        return;
    };
    let half = regions.len() / 2;
    let thresholds = control_thresholds(&CONFIG, &regions[..half], &regions[half..]);
    for threshold in [thresholds.box_threshold, thresholds.text_threshold] {
        assert!(threshold.is_none_or(|value| (0.0..=1.0).contains(&value)));
    }
    if let Some(ProtocolRequest::Marks { shapes, .. }) =
        ProtocolRequest::parse(&json!({"result": regions}))
    {
        assert!((1..=64).contains(&shapes.len()));
    }
    let Ok(Interaction::Drawing { shapes, .. }) = interaction(&regions, &[], &CONFIG) else {
        return;
    };
    assert!((1..=64).contains(&shapes.len()));
    let size = ImageSize {
        height: 427,
        width: 640,
    };
    let prompts = segment_prompts(&shapes, size);
    assert!((1..=64).contains(&prompts.len()));
    for prompt in &prompts {
        assert!(prompt.bounding_box.is_some() || !prompt.points.is_empty());
        for point in &prompt.points {
            assert!(point.x.is_finite() && point.y.is_finite(), "{point:?}");
        }
        if let Some(bounds) = prompt.bounding_box {
            let [x0, y0, x1, y1] = bounds.corners();
            assert!(bounds.corners().iter().all(|n| n.is_finite()), "{bounds:?}");
            assert!(x0 <= x1 && y0 <= y1, "{bounds:?}");
        }
    }
});
