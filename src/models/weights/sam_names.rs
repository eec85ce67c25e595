//! SAM, SAM-HQ, MobileSAM and EfficientViT-SAM: maps the tensor names of `sam_vit_*.pth`, `sam_hq_vit_*.pth`,
//! `mobile_sam.pt` and `efficientvit_sam_*.pt` (`segment_anything`, `segment_anything_hq`, `mobile_sam`, `efficientvit`) to
//! those of transformers (`convert_sam_to_hf.py`, `convert_samhq_to_hf.py`). TinyViT and EfficientViT are not in
//! transformers; they keep their own names under `vision_encoder`.

use super::names::{Rule, ignore, rename};

/// The rules; the first one that matches applies.
pub(super) const ORIGINAL: [Rule; 60] = [
    ignore("pixel_mean"),
    ignore("pixel_std"),
    // the image encoder
    rename("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    rename(
        "image_encoder.patch_embed.proj.*",
        "vision_encoder.patch_embed.projection.*",
    ),
    rename(
        "image_encoder.blocks.{}.norm1.*",
        "vision_encoder.layers.{}.layer_norm1.*",
    ),
    rename(
        "image_encoder.blocks.{}.norm2.*",
        "vision_encoder.layers.{}.layer_norm2.*",
    ),
    rename(
        "image_encoder.blocks.{}.attn.*",
        "vision_encoder.layers.{}.attn.*",
    ),
    rename(
        "image_encoder.blocks.{}.mlp.*",
        "vision_encoder.layers.{}.mlp.*",
    ),
    rename("image_encoder.neck.0.*", "vision_encoder.neck.conv1.*"),
    rename(
        "image_encoder.neck.1.*",
        "vision_encoder.neck.layer_norm1.*",
    ),
    rename("image_encoder.neck.2.*", "vision_encoder.neck.conv2.*"),
    rename(
        "image_encoder.neck.3.*",
        "vision_encoder.neck.layer_norm2.*",
    ),
    // TinyViT; the file still contains the ImageNet classification head
    ignore("image_encoder.norm_head.*"),
    ignore("image_encoder.head.*"),
    ignore("image_encoder.layers.{}.blocks.{}.attn.attention_bias_idxs"),
    ignore("image_encoder.layers.{}.blocks.{}.attn.ab"),
    rename(
        "image_encoder.patch_embed.seq.*",
        "vision_encoder.patch_embed.seq.*",
    ),
    rename("image_encoder.layers.*", "vision_encoder.layers.*"),
    // EfficientViT
    rename("image_encoder.backbone.*", "vision_encoder.backbone.*"),
    rename("image_encoder.neck.*", "vision_encoder.neck.*"),
    rename("image_encoder.norm.*", "vision_encoder.norm.*"),
    // the prompt encoder
    rename(
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    rename(
        "prompt_encoder.point_embeddings.{}.weight",
        "prompt_encoder.point_embed.{}.weight",
    ),
    rename(
        "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.not_a_point_embed.weight",
    ),
    rename(
        "prompt_encoder.no_mask_embed.weight",
        "prompt_encoder.no_mask_embed.weight",
    ),
    rename(
        "prompt_encoder.mask_downscaling.0.*",
        "prompt_encoder.mask_embed.conv1.*",
    ),
    rename(
        "prompt_encoder.mask_downscaling.1.*",
        "prompt_encoder.mask_embed.layer_norm1.*",
    ),
    rename(
        "prompt_encoder.mask_downscaling.3.*",
        "prompt_encoder.mask_embed.conv2.*",
    ),
    rename(
        "prompt_encoder.mask_downscaling.4.*",
        "prompt_encoder.mask_embed.layer_norm2.*",
    ),
    rename(
        "prompt_encoder.mask_downscaling.6.*",
        "prompt_encoder.mask_embed.conv3.*",
    ),
    // the mask decoder
    rename(
        "mask_decoder.iou_token.weight",
        "mask_decoder.iou_token.weight",
    ),
    rename(
        "mask_decoder.mask_tokens.weight",
        "mask_decoder.mask_tokens.weight",
    ),
    rename(
        "mask_decoder.transformer.layers.{}.norm1.*",
        "mask_decoder.transformer.layers.{}.layer_norm1.*",
    ),
    rename(
        "mask_decoder.transformer.layers.{}.norm2.*",
        "mask_decoder.transformer.layers.{}.layer_norm2.*",
    ),
    rename(
        "mask_decoder.transformer.layers.{}.norm3.*",
        "mask_decoder.transformer.layers.{}.layer_norm3.*",
    ),
    rename(
        "mask_decoder.transformer.layers.{}.norm4.*",
        "mask_decoder.transformer.layers.{}.layer_norm4.*",
    ),
    rename(
        "mask_decoder.transformer.norm_final_attn.*",
        "mask_decoder.transformer.layer_norm_final_attn.*",
    ),
    rename("mask_decoder.transformer.*", "mask_decoder.transformer.*"),
    rename(
        "mask_decoder.output_upscaling.0.*",
        "mask_decoder.upscale_conv1.*",
    ),
    rename(
        "mask_decoder.output_upscaling.1.*",
        "mask_decoder.upscale_layer_norm.*",
    ),
    rename(
        "mask_decoder.output_upscaling.3.*",
        "mask_decoder.upscale_conv2.*",
    ),
    rename(
        "mask_decoder.output_hypernetworks_mlps.{}.layers.0.*",
        "mask_decoder.output_hypernetworks_mlps.{}.proj_in.*",
    ),
    rename(
        "mask_decoder.output_hypernetworks_mlps.{}.layers.1.*",
        "mask_decoder.output_hypernetworks_mlps.{}.layers.0.*",
    ),
    rename(
        "mask_decoder.output_hypernetworks_mlps.{}.layers.2.*",
        "mask_decoder.output_hypernetworks_mlps.{}.proj_out.*",
    ),
    rename(
        "mask_decoder.iou_prediction_head.layers.0.*",
        "mask_decoder.iou_prediction_head.proj_in.*",
    ),
    rename(
        "mask_decoder.iou_prediction_head.layers.1.*",
        "mask_decoder.iou_prediction_head.layers.0.*",
    ),
    rename(
        "mask_decoder.iou_prediction_head.layers.2.*",
        "mask_decoder.iou_prediction_head.proj_out.*",
    ),
    // SAM-HQ
    rename(
        "mask_decoder.hf_token.weight",
        "mask_decoder.hq_token.weight",
    ),
    rename(
        "mask_decoder.hf_mlp.layers.0.*",
        "mask_decoder.hq_mask_mlp.proj_in.*",
    ),
    rename(
        "mask_decoder.hf_mlp.layers.1.*",
        "mask_decoder.hq_mask_mlp.layers.0.*",
    ),
    rename(
        "mask_decoder.hf_mlp.layers.2.*",
        "mask_decoder.hq_mask_mlp.proj_out.*",
    ),
    rename(
        "mask_decoder.compress_vit_feat.0.*",
        "mask_decoder.compress_vit_conv1.*",
    ),
    rename(
        "mask_decoder.compress_vit_feat.1.*",
        "mask_decoder.compress_vit_norm.*",
    ),
    rename(
        "mask_decoder.compress_vit_feat.3.*",
        "mask_decoder.compress_vit_conv2.*",
    ),
    rename(
        "mask_decoder.embedding_encoder.0.*",
        "mask_decoder.encoder_conv1.*",
    ),
    rename(
        "mask_decoder.embedding_encoder.1.*",
        "mask_decoder.encoder_norm.*",
    ),
    rename(
        "mask_decoder.embedding_encoder.3.*",
        "mask_decoder.encoder_conv2.*",
    ),
    rename(
        "mask_decoder.embedding_maskfeature.0.*",
        "mask_decoder.mask_conv1.*",
    ),
    rename(
        "mask_decoder.embedding_maskfeature.1.*",
        "mask_decoder.mask_norm.*",
    ),
    rename(
        "mask_decoder.embedding_maskfeature.3.*",
        "mask_decoder.mask_conv2.*",
    ),
];
