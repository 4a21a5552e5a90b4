from configuration_shirg.configuration_shirg_lavida import ShirgLavidaConfig  # noqa: F401 - replaced by the file itself on save
