//! The model card's examples: over HTTP, in Python with ONNX Runtime alone, in timm, transformers and transformers.js.

use macrl_bundle::config::{EncoderConfig, Fit};
use macrl_bundle::preprocess::Preprocess;

use crate::run::TrainedRun;

/// What the examples depend on.
#[derive(Debug, Clone)]
pub struct Example {
    /// Name of the model, which is its folder's.
    pub name: String,
    /// Geometry.
    pub encoder: EncoderConfig,
    /// The transform that the Python example computes.
    pub preprocess: Preprocess,
    /// Whether there are classes.
    pub classes: bool,
}

impl Example {
    /// The examples of a run's bundle.
    pub fn of(source: &TrainedRun) -> Self {
        Self {
            name: source.name.clone(),
            encoder: source.config.encoder.clone(),
            preprocess: Preprocess::from_config(&source.config),
            classes: source.probe.is_some(),
        }
    }
}

/// The section about use.
pub fn usage(example: &Example) -> String {
    let d = example.encoder.width;
    let http = "## Use\n\nOver HTTP:\n\n```sh\nmacrl-serve --bundle .\n\
                curl -H 'content-type: image/png' --data-binary @image.png http://127.0.0.1:8080/embed\n```\n";
    let (outputs, names) = match example.classes {
        true => ("feature, scores", "[\"pooler_output\", \"logits\"]"),
        false => ("feature,", "[\"pooler_output\"]"),
    };
    let onnx = format!(
        "\nIn Python with onnxruntime, numpy and pillow; `pixels` gives what the server gives the network:\n\n```python\n{}\n\n\
         session = onnxruntime.InferenceSession(\"onnx/model.onnx\")\n\
         {outputs} = session.run({names}, {{\"pixel_values\": pixels(\"image.png\")}})   # (1, {d})\n```\n",
        pixels(&example.preprocess)
    );
    [http.to_string(), onnx, timm(example), transformers(example), javascript(example)].concat()
}

/// A function in Python from a file to the network's input.
fn pixels(preprocess: &Preprocess) -> String {
    let size = preprocess.image_size;
    let (mean, std) = (preprocess.mean, preprocess.std);
    let draft = preprocess.shortest().map(|edge| {
        format!("    image.draft(\"RGB\", ({edge}, {edge}))                     # large JPEGs at 1/2, 1/4 or 1/8\n")
    });
    let resize = "w, h = S * w // min(w, h), S * h // min(w, h)\n    \
                  left, top = (w - S) // 2, (h - S) // 2\n    \
                  image = image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + S, top + S))";
    let fit = match preprocess.fit {
        Fit::Resize => format!("    w, h = image.size\n    {resize}\n"),
        Fit::Pad => format!(
            "    w, h = image.size\n    if max(w, h) <= S:                                   # centred on black\n        \
             canvas = Image.new(\"RGB\", (S, S))\n        \
             canvas.paste(image, ((S - w + 1) // 2, (S - h + 1) // 2))\n        \
             image = canvas\n    else:\n        {}\n",
            resize.replace("\n    ", "\n        ")
        ),
    };
    format!(
        "import io\nimport numpy as np, onnxruntime\nfrom PIL import Image, ImageCms, ImageOps\n\n\
         S, MEAN, STD = {size}, {mean:?}, {std:?}\n\n\
         def pixels(path):                                        # -> (1, 3, S, S)\n    \
             image = Image.open(path)\n{}    \
             image = ImageOps.exif_transpose(image)\n    \
             profile = image.info.get(\"icc_profile\")\n    \
             if image.mode.startswith(\"I\"):                       # 16 bits\n        \
                 image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))\n    \
             if profile and image.mode in (\"RGB\", \"RGBA\"):\n        \
                 image = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), \
         ImageCms.createProfile(\"sRGB\"))\n    \
             image = image.convert(\"RGBA\")                        # transparency over black\n    \
             image = Image.alpha_composite(Image.new(\"RGBA\", image.size, \"black\"), image).convert(\"RGB\")\n\
         {fit}    \
             x = (np.asarray(image, np.float32) / 255 - MEAN) / STD\n    \
             return x.transpose(2, 0, 1)[None].astype(np.float32)",
        draft.unwrap_or_default()
    )
}

fn timm(example: &Example) -> String {
    let mut text = String::from(
        "\nIn timm; `x` is `torch.from_numpy(pixels(\"image.png\"))`:\n\n```python\nimport timm\n\n\
         feature = timm.create_model(\"local-dir:.\", pretrained=True, num_classes=0).eval()(x)\n",
    );
    if example.classes {
        text += "scores = timm.create_model(\"local-dir:.\", pretrained=True).eval()(x)\n";
    }
    text + "```\n"
}

fn transformers(example: &Example) -> String {
    let mut text = String::from(
        "\nIn transformers, with timm installed; `pooler_output` is the server's feature. The processor takes an upright RGB image, \
         which pipelines make themselves:\n\n```python\nfrom transformers import AutoImageProcessor, AutoModel, pipeline\n\n\
         image = ImageOps.exif_transpose(Image.open(\"image.png\")).convert(\"RGB\")\n\
         inputs = AutoImageProcessor.from_pretrained(\".\")(image, return_tensors=\"pt\")\n\
         feature = AutoModel.from_pretrained(\".\").eval()(**inputs).pooler_output\n\
         feature = pipeline(\"image-feature-extraction\", \".\")(\"image.png\", pool=True)\n",
    );
    if example.classes {
        text += "classes = pipeline(\"image-classification\", \".\")(\"image.png\")\n";
    }
    text + "```\n"
}

fn javascript(example: &Example) -> String {
    let name = &example.name;
    let mut text = format!(
        "\nIn transformers.js, from the folder that holds this one; `dtype: \"q8\"` takes the 8-bit graph:\n\n```js\n\
         import {{ env, pipeline }} from \"@huggingface/transformers\";\n\n\
         env.localModelPath = \"./\";\n\
         const extract = await pipeline(\"image-feature-extraction\", \"{name}\", {{ dtype: \"fp32\" }});\n\
         const feature = await extract(\"{name}/image.png\", {{ pool: true }});\n"
    );
    if example.classes {
        text += &format!(
            "const classify = await pipeline(\"image-classification\", \"{name}\", {{ dtype: \"fp32\" }});\n\
             const classes = await classify(\"{name}/image.png\");\n"
        );
    }
    text + "```\n"
}
