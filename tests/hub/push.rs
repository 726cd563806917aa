//! What a run pushes, when, and what is there then.

use super::*;

/// What a failed push left over is sent once the hub works again.
fn completed_by_a_later_push(world: &World) {
    world.hub.clear_faults();
    let out = world.temper(&["push", world.run().to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(world.pushed("adapter_model.safetensors"), exported(&world.run(), "adapter_model.safetensors"));
}

#[test]
fn a_failed_push_loses_nothing_and_can_be_made_later() {
    let world = World::new();
    let trouble = || Fault::new("POST", "*/objects/batch", Trouble::Status(403)).times(100);
    world.hub.fault(trouble());
    let out = world.train(&[]);
    assert_eq!(out.status.code(), Some(7), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("temper push"), "{}", text(&out.stderr));
    assert!(world.run().join("report.html").is_file());
    completed_by_a_later_push(&world);
}

#[test]
fn saves_are_pushed_beside_training() {
    let world = World::new();
    let out = world.train(&["export.push_when=every-save", "export.push_checkpoint=true", "export.tag=v1"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let titles = world.hub.titles(Kind::Model, TO, "main").unwrap();
    assert!(titles.iter().any(|title| title.starts_with("Training in progress, step ")), "{titles:?}");
    assert!(titles.iter().any(|title| title == "End of training"), "{titles:?}");
    assert!(!world.pushed("last-checkpoint/optimizer.safetensors").is_empty());
    assert!(world.hub.read(Kind::Model, TO, "v1", "adapter_model.safetensors").is_ok());
}

#[test]
fn a_silent_hub_does_not_hold_up_the_end() {
    let silent = || Fault::new("POST", "*/objects/batch", Trouble::Delay(Duration::from_secs(50))).times(100);
    // Beside training.
    let world = World::new();
    world.hub.fault(silent());
    let endless = ["train.max_steps=100000", "train.save_every=3", "export.push_when=every-save"];
    let (out, took) = world.train_until(&endless, "objects/batch", "-TERM");
    assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
    assert!(took < Duration::from_secs(10), "{took:?}");
    // At the end: what was trained is whole.
    let world = World::new();
    world.hub.fault(silent());
    let (out, took) = world.train_until(&[], "objects/batch", "-TERM");
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{said}");
    assert!(took < Duration::from_secs(10) && said.contains("temper push"), "{took:?} {said}");
    assert!(world.run().join("report.html").is_file());
    completed_by_a_later_push(&world);
}

#[test]
fn an_export_that_the_run_has_left_behind_is_not_pushed_unasked() {
    let world = World::new();
    assert!(world.train(&["train.max_wall=1s", "train.max_steps=100000", "train.save_every=1000"]).status.success());
    let run = world.run();
    let provenance: Value = serde_json::from_slice(&exported(&run, "temper.json")).unwrap();
    let step = provenance["trained"]["step"].as_u64().unwrap();
    assert_eq!((step > 0, &provenance["trained"]["finished"]), (true, &Value::Bool(false)), "{provenance}");
    // It went on from there, and was killed after a checkpoint.
    fs::create_dir(run.join(format!("checkpoints/step-{}", step + 7))).unwrap();
    let push = run.display().to_string();
    let out = world.temper(&["push", &push]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{said}");
    for part in [&format!("step {step}"), &format!("step {}", step + 7), "--earlier"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(world.temper(&["push", &push, "--earlier"]).status.success());
    assert!(world.hub.titles(Kind::Model, TO, "main").unwrap().contains(&format!("Training until step {step}")));
}

/// `file` as two files and their index.
fn in_shards(file: &Path) {
    let bytes = fs::read(file).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut map = serde_json::Map::new();
    for number in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", number + 1);
        let (mut tensors, mut shard) = (serde_json::Map::new(), Vec::new());
        for (at, (tensor, facts)) in header.iter().filter(|(name, _)| *name != "__metadata__").enumerate() {
            let offset = |i: usize| facts["data_offsets"][i].as_u64().unwrap() as usize;
            if at % 2 == number {
                let begin = shard.len();
                shard.extend(&data[offset(0)..offset(1)]);
                let mut facts = facts.clone();
                facts["data_offsets"] = serde_json::json!([begin, shard.len()]);
                tensors.insert(tensor.clone(), facts);
                map.insert(tensor.clone(), name.clone().into());
            }
        }
        let header = Value::Object(tensors).to_string().into_bytes();
        let whole = [&(header.len() as u64).to_le_bytes()[..], &header, &shard].concat();
        fs::write(file.with_file_name(&name), whole).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(file.with_file_name("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(file).unwrap();
}

#[test]
fn weights_in_several_files_are_pushed() {
    let world = World::new();
    let out = world.train(&["export.merge=true", "export.push=merged"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let (run, whole) = (world.run(), world.pushed("model.safetensors"));
    in_shards(&run.join("merged/model.safetensors"));
    let (push, to) = (run.display().to_string(), TO);
    assert!(world.temper(&["push", &push, "--to", to]).status.success());
    for name in ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    {
        let there = world.hub.read(Kind::Model, to, "main", name).unwrap();
        assert_eq!(there, fs::read(run.join("merged").join(name)).unwrap(), "{name}");
        assert!(there.len() < whole.len());
    }
    assert!(
        world.hub.read(Kind::Model, to, "main", "model.safetensors").is_err(),
        "the old weights would be found first"
    );
    // What was pushed is what can be pulled and used.
    let out = world.temper(&["hub", "download", to]);
    let dir = text(&out.stdout).trim().to_owned();
    let predict = |dir: &str| text(&world.temper(&["predict", dir, "never again"]).stdout);
    assert!(predict(&dir).contains("label"), "{}", predict(&dir));
    fs::remove_file(run.join("merged/model-00002-of-00002.safetensors")).unwrap();
    let out = world.temper(&["push", &push, "--to", to]);
    assert!(out.status.code() == Some(3) && text(&out.stderr).contains("model-00002"), "{out:?}");
}

#[test]
fn a_model_that_trains_whole_is_pushed_beside_training_too() {
    let world = World::new();
    let recipe = world.home.path().join("full.toml");
    let tables = fs::read_to_string(root().join("recipes/sentiment-hub.toml")).unwrap();
    let tables = tables.replace("rank = 8", "method = \"full\"").replace("alpha = 16\n", "").replace("1e-3", "1e-4");
    fs::write(&recipe, tables).unwrap();
    let train = |overrides: &[&str]| world.training_of(recipe.to_str().unwrap(), overrides).output().unwrap();
    let out = train(&["export.push_when=every-save", "train.save_every=3"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let titles = world.hub.titles(Kind::Model, TO, "main").unwrap();
    let title = titles.iter().find(|title| title.starts_with("Training in progress, step ")).unwrap();
    assert_eq!(world.pushed("model.safetensors"), exported(&world.run(), "model.safetensors"), "{title}");
    let out = train(&["adapter.freeze=[\"bias$\"]", "export.push_when=best"]);
    assert!(out.status.code() == Some(2) && text(&out.stderr).contains("push_when"), "{out:?}");
}

#[test]
fn merged_weights_are_pushed_with_their_card_and_its_picture() {
    let world = World::new();
    let out = world.train(&["export.merge=true", "export.push=merged"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(world.pushed("model.safetensors"), fs::read(world.run().join("merged/model.safetensors")).unwrap());
    assert!(text(&world.pushed("README.md")).contains("curves.svg") && !world.pushed("curves.svg").is_empty());
    assert!(world.hub.read(Kind::Model, TO, "main", "adapter_model.safetensors").is_err());
}

/// An adapter beside merged weights is taken for theirs, by Transformers as by temper.
#[test]
fn a_repository_has_the_adapter_or_the_merged_weights() {
    let world = World::new();
    let out = world.train(&["export.merge=true"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let run = world.run().display().to_string();
    let there = |name: &str| world.hub.read(Kind::Model, TO, "main", name).is_ok();
    let answers = |model: &str| text(&world.temper(&["predict", model, "never again"]).stdout);
    for (flags, here, gone) in [
        (&["--merged"][..], "model.safetensors", ["adapter_model.safetensors", "adapter_config.json"]),
        (&[], "adapter_model.safetensors", ["model.safetensors", "model.safetensors.index.json"]),
    ] {
        let out = world.temper(&[&["push", &run], flags].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert!(there(here) && !gone.iter().any(|name| there(name)), "{flags:?}");
        let said = answers(TO);
        assert!(said.contains("label"), "{said}");
    }
}

#[test]
fn the_licence_of_a_later_push_is_on_the_card() {
    let world = World::new();
    assert!(world.train(&[]).status.success());
    let run = world.run().display().to_string();
    let reason = "our own \"rows\": all of them";
    let out = world.temper(&["push", &run, "--license", "mit", "--licence-override", reason]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let card = text(&world.pushed("README.md"));
    assert!(card.contains("license: mit") && card.contains(reason), "{card}");
    let remembered: Value = serde_json::from_slice(&world.pushed("temper.json")).unwrap();
    assert_eq!(remembered["card"]["license"], "mit");
    // What lies here is what the run wrote.
    assert!(text(&exported(&world.run(), "README.md")).contains("license: apache-2.0"));
}

#[test]
fn a_private_repository_does_not_become_public_by_a_push() {
    let world = World::new();
    assert!(world.train(&[]).status.success());
    let run = world.run().display().to_string();
    let out = world.temper(&["push", &run, "--public"]);
    assert!(!out.status.success() && text(&out.stderr).contains("make it public on its page"), "{out:?}");
}

#[test]
fn a_merge_by_hand_can_be_pushed() {
    let world = World::new();
    assert!(world.train(&[]).status.success());
    let run = world.run();
    let out = world.temper(&["merge", run.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let to = "me/merged";
    let out = world.temper(&["push", run.to_str().unwrap(), "--merged", "--to", to]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let card = text(&world.hub.read(Kind::Model, to, "main", "README.md").unwrap());
    for part in
        ["base_model_relation: finetune", "library_name: transformers", "Full weights", "accuracy", "license: apache"]
    {
        assert!(card.contains(part), "{part} is not in\n{card}");
    }
    assert!(!card.contains("peft") && !card.contains("base_model:adapter"), "{card}");
    assert!(!world.hub.read(Kind::Model, to, "main", "curves.svg").unwrap().is_empty());
}
